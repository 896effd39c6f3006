"""ProcessBench: does a score a step find the first wrong one? Predictions, F1 and the exact best threshold.

A response is predicted wrong at its first step whose score is below a threshold, and right (-1) if there is none. F1 is
the harmonic mean of the accuracy on responses with a wrong step and on those without (arXiv 2412.06559).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_ray.core.metrics import Interval, percentile_interval, resample_means
from prm_ray.core.rewards import prefix_values

RIGHT = -1
"""The label of a response without a wrong step."""

PROTOCOLS = ("prefix", "step", "prefix_mean")
"""What a step is judged by, see `step_scores`."""
_UNIFORM_GRID = 10_000


@dataclass(frozen=True)
class ProcessBenchScore:
    """Shares between 0 and 1; None where no response is of that kind."""

    f1: float | None
    error_accuracy: float | None
    """Of responses with a wrong step: exactly that one was named."""
    correct_accuracy: float | None
    """Of responses without one: none was named."""


def step_scores(step_rewards_S: Sequence[float], step_ends_S: Sequence[int], protocol: str) -> list[float]:
    """S numbers that a threshold is put to; step ends are token offsets.

    `prefix`: the value of the prefix up to the step's end, its rewards added up (the way of arXiv 2412.01981's code);
    `step`: the step's own reward; `prefix_mean`: the prefix value by its number of tokens (arXiv 2604.13197). Papers
    take the sigmoid of them. It rises with them, so thresholds on the sigmoid and on the number itself name the same
    steps; the number itself is not rounded to 0 or 1 far out, where log-probs lie.
    """
    if protocol == "step":
        return list(step_rewards_S)
    values_S = prefix_values(step_rewards_S)
    if protocol == "prefix":
        return values_S
    if protocol == "prefix_mean":
        return [value / end for value, end in zip(values_S, step_ends_S, strict=True)]
    raise ValueError(f"protocol {protocol!r} must be one of {', '.join(PROTOCOLS)}")


def first_below(step_scores_S: Sequence[float], threshold: float) -> int:
    """0-based index of the first step whose score is below the threshold; -1 = none, also of a response of no steps."""
    return next((step for step, score in enumerate(step_scores_S) if score < threshold), RIGHT)


def process_bench_score(predictions: Sequence[int], labels: Sequence[int]) -> ProcessBenchScore:
    """F1 and its two accuracies of predicted against labelled first wrong steps."""
    hits = {True: [0, 0], False: [0, 0]}  # is the label right? -> hits, responses
    for prediction, label in zip(predictions, labels, strict=True):
        hits[label == RIGHT][0] += prediction == label
        hits[label == RIGHT][1] += 1
    accuracies = {kind: found / number if number else None for kind, (found, number) in hits.items()}
    return ProcessBenchScore(_harmonic(accuracies[False], accuracies[True]), accuracies[False], accuracies[True])


def resampled_scores(
    predictions: Sequence[int], labels: Sequence[int], num_resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """`ProcessBenchScore` of R bootstrap resamples of the responses: field -> [R], nan where it is not defined."""
    kinds_N2 = np.array([[label != RIGHT, label == RIGHT] for label in labels], dtype=np.float64)
    hits_N = np.array([prediction == label for prediction, label in zip(predictions, labels, strict=True)])
    means_RM = resample_means(np.hstack([kinds_N2 * hits_N[:, None], kinds_N2]), num_resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        error_R, correct_R = (means_RM[:, :2] / means_RM[:, 2:]).T
        f1_R = np.where(error_R + correct_R == 0, 0.0, 2 * error_R * correct_R / (error_R + correct_R))
    return {"f1": f1_R, "error_accuracy": error_R, "correct_accuracy": correct_R}


def mean_f1(values: Sequence[float | None], resampled: Sequence[NDArray[np.float64]]) -> Interval:
    """Mean over subsets, the figure ProcessBench is compared by; not defined if one of them has none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Interval(None, None, None)
    return defined_interval(float(np.mean(known)), np.mean(resampled, axis=0))


def defined_interval(value: float | None, resampled_R: NDArray[np.float64]) -> Interval:
    """95 % interval over the resamples that define the figure; without bounds if none does."""
    defined_R = resampled_R[np.isfinite(resampled_R)]
    return percentile_interval(value, defined_R) if len(defined_R) else Interval(value, None, None)


def uniform_score(num_steps: Sequence[int], labels: Sequence[int], threshold: float) -> ProcessBenchScore:
    """What step scores drawn from [0, 1] at random reach on average.

    A right response of S steps is left alone with chance (1-t)^S, one wrong at step k named with t (1-t)^k.
    """
    met: dict[bool, list[float]] = {True: [], False: []}
    for steps, label in zip(num_steps, labels, strict=True):
        chance = (1 - threshold) ** steps if label == RIGHT else threshold * (1 - threshold) ** label
        met[label == RIGHT].append(chance)
    accuracies = {kind: sum(chances) / len(chances) if chances else None for kind, chances in met.items()}
    return ProcessBenchScore(_harmonic(accuracies[False], accuracies[True]), accuracies[False], accuracies[True])


def best_uniform_threshold(num_steps: Sequence[int], labels: Sequence[int]) -> float:
    """The threshold at which such scores have the highest expected F1 on these responses, to a ten-thousandth."""
    t_C = np.linspace(0, 1, _UNIFORM_GRID + 1)
    right_C, wrong_C = np.zeros_like(t_C), np.zeros_like(t_C)
    for steps, label in zip(num_steps, labels, strict=True):
        if label == RIGHT:
            right_C += (1 - t_C) ** steps
        else:
            wrong_C += t_C * (1 - t_C) ** label
    right_C, wrong_C = right_C / max(right_C[0], 1), wrong_C / max(sum(label != RIGHT for label in labels), 1)
    total_C = right_C + wrong_C
    f1_C = np.divide(2 * right_C * wrong_C, total_C, out=np.zeros_like(t_C), where=total_C > 0)
    return float(t_C[f1_C.argmax()])


def best_threshold(step_scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The threshold with the highest F1 on these responses; of several the lowest. Exact, no grid.

    A response without a wrong step is met by thresholds up to its lowest score; one whose step k is wrong by those
    above the score of k and up to the lowest before k. So F1 changes at the scores alone. Raises `ValueError` unless
    there are both kinds of response.
    """
    ranges = [_meeting_range(scores, label) for scores, label in zip(step_scores, labels, strict=True)]
    is_right_N = np.array([label == RIGHT for label in labels], dtype=bool)
    if is_right_N.all() or not is_right_N.any():
        raise ValueError("a threshold needs responses with a wrong step and responses without one")
    low_N, high_N = np.array(ranges, dtype=np.float64).T
    candidates_C = _between(np.concatenate([low_N, high_N]))
    accuracy_C = {
        kind: _share_met(low_N[is_right_N == kind], high_N[is_right_N == kind], candidates_C) for kind in (True, False)
    }
    product_C = accuracy_C[True] * accuracy_C[False]
    total_C = accuracy_C[True] + accuracy_C[False]
    f1_C = np.divide(2 * product_C, total_C, out=np.zeros_like(total_C), where=total_C > 0)
    return float(candidates_C[f1_C.argmax()])


def _meeting_range(scores_S: Sequence[float], label: int) -> tuple[float, float]:
    """(low, high): thresholds above low and up to high predict the label; empty if high <= low."""
    if label == RIGHT:
        return -np.inf, min(scores_S, default=np.inf)
    if not 0 <= label < len(scores_S):
        raise ValueError(f"label {label} must be {RIGHT} or a step of {len(scores_S)}")
    return scores_S[label], min(scores_S[:label], default=np.inf)


def _between(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """A threshold below all scores, one in each gap between two, one above all; rising."""
    finite = np.unique(scores[np.isfinite(scores)])
    if not len(finite):
        return np.zeros(1)
    middles = finite[:-1] + np.diff(finite) / 2
    return np.concatenate([[finite[0] - 1], np.maximum(middles, np.nextafter(finite[:-1], np.inf)), [finite[-1] + 1]])


def _share_met(
    low_N: NDArray[np.float64], high_N: NDArray[np.float64], thresholds_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of the ranges that each threshold lies in."""
    real_N = high_N > low_N
    begun_C = np.searchsorted(np.sort(low_N[real_N]), thresholds_C, side="left")  # low < threshold
    over_C = np.searchsorted(np.sort(high_N[real_N]), thresholds_C, side="left")  # high < threshold
    return (begun_C - over_C) / len(low_N)


def _harmonic(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return 2 * one * other / (one + other) if one + other else 0.0
