"""Figures of a report: pass@k, AUC, how often the lowest step is the wrong one, and intervals for all of them.

Suffixes: P problems, M figures of a problem, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MAX_RESAMPLED_NUMBERS = 1 << 24
"""Resampling counts kept in memory at once (R x P)."""
_MAX_KEPT_NUMBERS = 1 << 22
"""Resampling counts that are kept for the next figure; of more problems they are drawn each time."""
_DIGITS = 12
"""Decimals of a figure. Those behind them hang on the order of a sum, and a difference of equals would not be 0."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval; a bound is None where the resamples do not define it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class WithinAuc:
    """AUC among the candidates of one problem, put together over problems that have right and wrong ones."""

    mean: float | None
    """Each problem counts once."""
    pair_weighted: float | None
    """Each (right, wrong) pair counts once."""
    num_problems: int
    num_pairs: int
    per_problem: tuple[float | None, ...]
    """In the order of the input; None = only right or only wrong candidates."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), as a product that cannot overflow.
    """
    assert 0 <= num_correct <= num_samples and 1 <= k <= num_samples
    if num_samples - num_correct < k:
        return 1.0
    factors = 1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)
    return float(1.0 - np.prod(factors))


def auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Chance that a right candidate scores higher than a wrong one, ties counting half (Mann-Whitney).

    None unless there are both right and wrong ones.
    """
    scores_N, labels_N = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    num_right = int(labels_N.sum())
    num_pairs = num_right * (len(labels_N) - num_right)
    if num_pairs == 0:
        return None
    _, place_N, count_U = np.unique(scores_N, return_inverse=True, return_counts=True)
    mean_rank_U = np.cumsum(count_U) - (count_U - 1) / 2
    rank_sum = mean_rank_U[place_N][labels_N].sum()
    return float((rank_sum - num_right * (num_right + 1) / 2) / num_pairs)


def within_problem_auc(problems: Sequence[tuple[ArrayLike, ArrayLike]]) -> WithinAuc:
    """AUC inside each (scores, labels) of a problem: ranking candidates, not telling easy problems from hard ones."""
    values = [auc(scores, labels) for scores, labels in problems]
    pairs = []
    for _, labels in problems:
        labels_N = np.asarray(labels, dtype=bool)
        pairs.append(int(labels_N.sum()) * int((~labels_N).sum()))
    defined = [value for value in values if value is not None]
    num_pairs = sum(pairs)
    weighted = sum(value * pair for value, pair in zip(values, pairs, strict=True) if value is not None)
    return WithinAuc(
        mean=float(np.mean(defined)) if defined else None,
        pair_weighted=weighted / num_pairs if num_pairs else None,
        num_problems=len(defined),
        num_pairs=num_pairs,
        per_problem=tuple(values),
    )


def first_error_hit(step_rewards_S: ArrayLike, first_wrong: int) -> tuple[float, float]:
    """(hit, chance) of one wrong response: is its lowest step reward on its first wrong step (0-based)?

    Steps that share the lowest reward share the hit; chance is that of a step taken at random.
    """
    rewards_S = np.asarray(step_rewards_S, dtype=np.float64)
    lowest_S = rewards_S == rewards_S.min()
    return float(lowest_S[first_wrong]) / int(lowest_S.sum()), 1.0 / len(rewards_S)


def resample_means(values_PM: ArrayLike, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap over problems: (R, M) means of the columns, all columns over the same resampled problems.

    Differences and ratios of columns are therefore paired.
    """
    values_PM = np.asarray(values_PM, dtype=np.float64)
    num_problems = len(values_PM)
    assert num_problems > 0, "nothing to resample"
    if num_resamples * num_problems <= _MAX_KEPT_NUMBERS:
        return _kept_counts(num_problems, num_resamples, seed) @ values_PM / num_problems
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_RESAMPLED_NUMBERS // num_problems)
    means = []
    for start in range(0, num_resamples, chunk):
        counts_RP = _counts(rng, num_problems, min(chunk, num_resamples - start))
        means.append(counts_RP @ values_PM / num_problems)
    return np.concatenate(means)


@lru_cache(maxsize=2)
def _kept_counts(num_problems: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """A report resamples the same problems for each of its figures, and drawing takes far longer than the means."""
    return _counts(np.random.default_rng(seed), num_problems, num_resamples).astype(np.float64)


def _counts(rng: np.random.Generator, num_problems: int, num_resamples: int) -> NDArray[np.int64]:
    """How often each problem is in each resample, [R, P]."""
    return rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=num_resamples)


def percentile_interval(value: float | None, resampled_R: NDArray[np.float64]) -> Interval:
    """95 % percentile interval around `value`."""
    low, high = np.percentile(resampled_R, [2.5, 97.5], method="linear")
    return Interval(_rounded(value), _rounded(low), _rounded(high))


def difference_interval(
    ours: float, theirs: float, ours_R: NDArray[np.float64], theirs_R: NDArray[np.float64]
) -> Interval:
    """Ours minus theirs, over the same resamples."""
    return percentile_interval(ours - theirs, ours_R - theirs_R)


def ratio_interval(ours: float, theirs: float, ours_R: NDArray[np.float64], theirs_R: NDArray[np.float64]) -> Interval:
    """Ours divided by theirs, over the same resamples; resamples in which theirs is 0 define no ratio."""
    if theirs == 0:
        return Interval(None, None, None)
    defined_R = theirs_R != 0
    return percentile_interval(ours / theirs, ours_R[defined_R] / theirs_R[defined_R])


def _rounded(number: float | None) -> float | None:
    """None unless it is finite; 0 has no sign."""
    return None if number is None or not np.isfinite(number) else round(float(number), _DIGITS) + 0.0
