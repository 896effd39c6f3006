"""Is the answer of a problem settled? The chance that the vote of all N responses is another one than the vote so far.

After n of at most N responses with answers and votes, the N - n to come are drawn from what the n seen leave open, and
voted on together with them. The share of draws in which another answer wins is `change`.

*The model.* Responses to a problem are exchangeable, and their answers follow a Pitman-Yor process (Pitman and Yor
1997) with discount d and concentration c: after n responses with K answers, the k-th seen n_k times, the next one
gives answer k with chance (n_k - d) / (n + c), and one that nobody gave yet with chance (c + d K) / (n + c). So
scattered answers foretell more of their kind. All answers not seen yet are taken for one, the strongest rival they
could be. A coming response votes like one of those seen with its answer (any, if its answer is new), disturbed by a
normal kernel (a smoothed bootstrap, bandwidth about s n^(-1/5) with the standard deviation s of the log votes): a vote
higher than all so far must stay possible.

*What the level means.* Of all problems, at most a share e is stopped before N with an answer that is not the one all N
would have voted for. One may look after every response, without a correction: `change` is a conditional probability
p_n = P(other answer at N | first n), and stopped at T = the first n with p_n <= e, the chance of a change is E[p_T; T
< N] <= e, whatever else T hangs on. That is exact where the model is, so on average over problems that resemble it.
For one given law of answers it can fail: with two answers that are equally likely and votes that know nothing it was
up to 1.5 e. Hence `is_settled` asks for `change <= e / 2`, with which the measured share stayed below e for every law
tried (flat, peaked, long-tailed, two and three equal rivals, each with equal votes, votes that know the right answer
and votes that do not; looking after every response from the third on: tests/unit/test_search_settled.py). It is a
measured level, not a theorem for every law, and it says nothing about whether the answer is *right*.

*What did not work.* A betting e-process (Waudby-Smith and Ramdas, arXiv 2010.09686, with Ville's inequality) on "the
leader's expected vote is larger than its rival's" holds for every law, but asks about infinitely many responses. With
equal votes, uniform stakes and half the level for the answer seen first, it settles at e = 0.05 after 8 equal answers
(2^9 / 9 > 40), and 12 of 16 against 4 never; this test ends after 5, and after 7 with one against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DISCOUNT, _CONCENTRATION = 0.5, 1.0
_MARGIN = 0.5
"""Part of the error level that `change` may use up; chosen so that the worst law of answers keeps the level."""
_FEWEST_DRAWS, _MOST_DRAWS, _COMING = 150, 400, 8000
"""Draws of the future: as many as keep all their responses together below `_COMING`, for less than 1 ms a call."""
_NO_SHARE = 1e-300
"""Of nobody: less than of any answer that someone gave."""
_SEED = 20_240_601
"""Every call draws the same numbers, so it is a function of its arguments alone."""


@dataclass(frozen=True)
class Outlook:
    """What further responses may do to a vote."""

    change: float
    """Chance that another answer leads in the end."""
    gain: float
    """Expected share of votes that the answer in the end has over the answer now: what a change would be worth."""

    def is_settled(self, error: float) -> bool:
        """At this error level, see the module."""
        return self.change <= _MARGIN * error


def outlook(answers: Sequence[str | None], log_votes: ArrayLike, ahead: int) -> Outlook:
    """Of n >= 1 responses, their answers (None: it has none, and no vote) and log votes, with `ahead` more to come.

    Votes are relative: adding a number to all log votes changes nothing. Those of responses without an answer are not
    read; they count as votes of average weight for nobody, so an answer that one of many gave has a small share.
    """
    assert answers, "no responses"
    if ahead <= 0:
        return Outlook(0.0, 0.0)
    votes = _Votes.of(answers, np.asarray(log_votes, dtype=np.float64))
    final_DK = votes.after(ahead, np.random.default_rng(_SEED))
    share_DK = final_DK / final_DK.sum(axis=1, keepdims=True)
    if votes.nobody is not None:
        share_DK[:, votes.nobody] = _NO_SHARE
    gain_D = share_DK.max(axis=1) - share_DK[:, votes.leader]
    return Outlook(float((share_DK.argmax(axis=1) != votes.leader).mean()), float(gain_D.mean()))


@dataclass(frozen=True)
class _Votes:
    """n responses with K kinds of answers, having none being a kind, in the order of their first appearance."""

    kind_n: NDArray[np.int64]
    log_vote_n: NDArray[np.float64]
    """The highest is 0."""
    nobody: int | None
    """The kind of those without an answer."""
    bandwidth: float

    @classmethod
    def of(cls, answers: Sequence[str | None], log_vote_n: NDArray[np.float64]) -> _Votes:
        kinds: dict[str | None, int] = {}
        kind_n = np.array([kinds.setdefault(answer, len(kinds)) for answer in answers])
        voted_n = np.array([answer is not None for answer in answers])
        if not voted_n.any():
            return cls(kind_n, np.zeros(len(answers)), 0, 0.0)
        voted = log_vote_n[voted_n] - log_vote_n[voted_n].max()
        log_vote_n = np.full(len(answers), np.log(np.exp(voted).mean()))
        log_vote_n[voted_n] = voted
        return cls(kind_n, log_vote_n, kinds.get(None), _bandwidth(voted))

    @property
    def now_K(self) -> NDArray[np.float64]:
        return np.bincount(self.kind_n, np.exp(self.log_vote_n)).astype(np.float64)

    @property
    def leader(self) -> int:
        votes_K = self.now_K
        if self.nobody is not None:
            votes_K[self.nobody] = _NO_SHARE
        return int(votes_K.argmax())

    def after(self, ahead: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """[D, K + 1] votes with `ahead` more responses, D times drawn from the model."""
        num_draws = min(_MOST_DRAWS, max(_FEWEST_DRAWS, _COMING // ahead))
        count_K = np.bincount(self.kind_n).astype(np.int64)
        coming_DK = rng.multinomial(ahead, _masses(count_K, num_draws, rng))
        cell_R = np.repeat(np.arange(coming_DK.size), coming_DK.ravel())  # R = D * ahead responses to come
        log_vote_R = self._coming_log_votes(cell_R % coming_DK.shape[1], count_K, rng)
        top_D = np.zeros(num_draws)  # votes are relative within a draw, and the highest may be beyond any float
        np.maximum.at(top_D, cell_R // coming_DK.shape[1], log_vote_R)
        vote_R = np.exp(log_vote_R - top_D[cell_R // coming_DK.shape[1]])
        final_DK = np.bincount(cell_R, vote_R, minlength=coming_DK.size).astype(np.float64).reshape(coming_DK.shape)
        final_DK[:, : len(count_K)] += self.now_K * np.exp(-top_D)[:, None]
        return final_DK

    def _coming_log_votes(
        self, kind_R: NDArray[np.int64], count_K: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Each like that of a response of its kind, or of any if its kind is new, disturbed by the kernel."""
        anyone = np.arange(len(self.kind_n))
        members = np.concatenate([np.argsort(self.kind_n, kind="stable"), anyone])
        size_K = np.append(count_K, len(anyone))
        start_K = np.append(np.cumsum(count_K) - count_K, len(anyone))
        like_R = members[start_K[kind_R] + (rng.random(len(kind_R)) * size_K[kind_R]).astype(np.int64)]
        return self.log_vote_n[like_R] + self.bandwidth * rng.standard_normal(len(kind_R))


def _bandwidth(log_votes_n: NDArray[np.float64]) -> float:
    """Of the kernel. The factor in front is that of a prediction: for small n the deviation itself is uncertain."""
    n = len(log_votes_n)
    return float(math.sqrt((n + 1) / (n - 1)) * log_votes_n.std() * n**-0.2) if n > 1 else 0.0


def _masses(count_K: NDArray[np.int64], num_draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[D, K + 1] chances of the K answers seen and of all others: Dirichlet(n_1 - d, ..., n_K - d, c + d K)."""
    shapes = np.append(count_K - _DISCOUNT, _CONCENTRATION + _DISCOUNT * len(count_K))
    gamma_DK = rng.standard_gamma(shapes, size=(num_draws, len(shapes))).astype(np.float64)
    return gamma_DK / gamma_DK.sum(axis=1, keepdims=True)
