"""ProcessBench: does a score a step find the first wrong one? Predictions, F1 and the exact best threshold.

A response is predicted wrong at its first step whose score is below a threshold, and right (-1) if there is none. F1 is
the harmonic mean of the accuracy on responses with a wrong step and on those without (arXiv 2412.06559).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIGHT = -1
"""The label of a response without a wrong step."""


@dataclass(frozen=True)
class ProcessBenchScore:
    """Shares between 0 and 1; None where no response is of that kind."""

    f1: float | None
    error_accuracy: float | None
    """Of responses with a wrong step: exactly that one was named."""
    correct_accuracy: float | None
    """Of responses without one: none was named."""


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
