"""Pick one of N candidates to a problem, and say how often a random subset of n of them would have picked right.

Suffixes: N candidates, K subsets, A distinct answers. Answers are compared as strings, as the judge normalised them;
None means that the candidate gave no answer. Ties go to the candidate that comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

VoteWeight = Literal["sigmoid", "softmax"]
_NO_ANSWER = -1


def best_of_n(rewards: ArrayLike) -> int:
    """Index of the highest of N rewards."""
    return int(np.argmax(np.asarray(rewards, dtype=np.float64)))


def answered_first(rewards: ArrayLike, answers: Sequence[str | None]) -> NDArray[np.float64]:
    """[N] places that best-of-N picks by, the highest first: a candidate without an answer comes behind all that have
    one, else the reward decides. No two are the same, so the order holds in a subset where nobody has an answer too."""
    has_none_N = np.array([answer is None for answer in answers], dtype=bool)
    order_N = np.lexsort((-np.asarray(rewards, dtype=np.float64), has_none_N))
    places_N = np.empty(len(order_N))
    places_N[order_N] = -np.arange(len(order_N))
    return places_N


def majority_vote(answers: Sequence[str | None]) -> int:
    """Index of the first candidate that carries the most frequent answer (self-consistency).

    Candidates without an answer have no vote; if nobody has one, the first candidate is the pick.
    """
    return weighted_vote(answers, np.ones(len(answers)))


def weighted_vote(answers: Sequence[str | None], weights: ArrayLike) -> int:
    """Index of the first candidate that carries the answer with the highest sum of weights (N numbers >= 0)."""
    weights_N = np.asarray(weights, dtype=np.float64)
    with np.errstate(divide="ignore"):
        log_weights_N = np.log(weights_N)
    return int(vote_picks(answers, log_weights_N, np.ones((1, len(answers)), dtype=bool))[0])


def log_vote_weights(rewards: ArrayLike, how: VoteWeight) -> NDArray[np.float64]:
    """Logarithm of each candidate's vote: log sigmoid(reward), or log softmax of the rewards within the problem.

    Logarithms, because a sum of log-ratios of -800 is an ordinary reward and its sigmoid is 0 in floating point.
    """
    rewards_N = np.asarray(rewards, dtype=np.float64)
    if how == "sigmoid":
        return -np.logaddexp(0.0, -rewards_N)
    return rewards_N - np.logaddexp.reduce(rewards_N)


def best_of_n_accuracy(rewards: ArrayLike, correct: ArrayLike, n: int) -> float:
    """Chance that best-of-n over a random subset of n of the N candidates picks a right one: exact.

    The candidate ranked k-th is the pick if it is in the subset and none of the k - 1 better ones is: it has
    C(N - k, n - 1) of the C(N, n) subsets.
    """
    order_N = np.argsort(-np.asarray(rewards, dtype=np.float64), kind="stable")
    return float(_rank_chances(len(order_N), n) @ np.asarray(correct, dtype=np.float64)[order_N])


def vote_accuracy(
    answers: Sequence[str | None],
    correct: ArrayLike,
    log_weights: ArrayLike,
    members_KN: NDArray[np.bool_],
) -> float:
    """Share of the K subsets whose (weighted) vote is right. An answer is right if any candidate with it is."""
    correct_N = np.asarray(correct, dtype=bool)
    right = {answer for answer, is_right in zip(answers, correct_N, strict=True) if is_right and answer is not None}
    answer_correct_N = np.array(
        [is_right or answer in right for answer, is_right in zip(answers, correct_N, strict=True)], dtype=bool
    )
    return float(answer_correct_N[vote_picks(answers, log_weights, members_KN)].mean())


def vote_picks(
    answers: Sequence[str | None], log_weights: ArrayLike, members_KN: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The pick of each of K subsets (rows of `members_KN`, each with a member): an index into the N candidates."""
    codes_N = _answer_codes(answers)
    num_answers = int(codes_N.max(initial=_NO_ANSWER)) + 1
    # What has no vote must not set the scale either: beside its weight those of all answers may be 0.
    votes_KN = members_KN & (codes_N != _NO_ANSWER)
    log_weights_KN = np.where(votes_KN, np.asarray(log_weights, dtype=np.float64), -np.inf)
    top_K1 = log_weights_KN.max(axis=1, keepdims=True)
    weights_KN = np.exp(log_weights_KN - np.where(np.isfinite(top_K1), top_K1, 0.0))

    num_subsets, num_candidates = members_KN.shape
    totals_KA = np.full((num_subsets, num_answers + 1), -np.inf)
    first_KA = np.full((num_subsets, num_answers + 1), num_candidates)
    for code in range(_NO_ANSWER, num_answers):
        has_KN = members_KN & (codes_N == code)
        present_K = has_KN.any(axis=1)
        votes_K = (weights_KN * has_KN).sum(axis=1) if code != _NO_ANSWER else np.full(num_subsets, -1.0)
        totals_KA[present_K, code] = votes_K[present_K]
        first_KA[present_K, code] = has_KN.argmax(axis=1)[present_K]
    best_K1 = totals_KA.max(axis=1, keepdims=True)
    return np.where(totals_KA == best_K1, first_KA, num_candidates).min(axis=1)


def subsets(num_candidates: int, n: int, num_subsamples: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Subsets of n of the N candidates as a (K, N) mask: every one of them if they are at most `num_subsamples`,
    else so many at random (each uniform, drawn independently)."""
    assert 1 <= n <= num_candidates, f"no subset of {n} out of {num_candidates} candidates"
    if math.comb(num_candidates, n) <= num_subsamples:
        chosen_Kn = np.array(list(combinations(range(num_candidates), n)))
    else:
        chosen_Kn = rng.random((num_subsamples, num_candidates)).argsort(axis=1)[:, :n]
    members_KN = np.zeros((len(chosen_Kn), num_candidates), dtype=bool)
    np.put_along_axis(members_KN, chosen_Kn, True, axis=1)
    return members_KN


@lru_cache(maxsize=1024)
def _rank_chances(num_candidates: int, n: int) -> NDArray[np.float64]:
    assert 1 <= n <= num_candidates, f"no subset of {n} out of {num_candidates} candidates"
    total = math.comb(num_candidates, n)
    return np.array([math.comb(num_candidates - k, n - 1) / total for k in range(1, num_candidates + 1)])


def _answer_codes(answers: Sequence[str | None]) -> NDArray[np.int64]:
    seen: dict[str, int] = {}
    codes = [_NO_ANSWER if answer is None else seen.setdefault(answer, len(seen)) for answer in answers]
    return np.array(codes, dtype=np.int64)
