"""Does the reward follow the length of a response, apart from whether it is right?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_ray.compare.methods import Method
from prm_ray.compare.runs import FinishedRun

_FEWEST = 5
"""Responses that a mean of a bin needs to be shown."""


def length_figures(method: Method, prompt_ids: list[str], edges: NDArray[np.float64]) -> dict[str, Any]:
    """For right and for wrong responses: mean reward in bins of length, and the rank correlation of the two.

    Rewards are standardised over the responses of each run, for methods have different units; seeds are averaged.
    """
    figures: dict[str, Any] = {}
    tables = [_table(run, prompt_ids) for run in method.runs]
    for name, is_right in (("right", True), ("wrong", False)):
        chosen = [(lengths[labels == is_right], rewards[labels == is_right]) for lengths, rewards, labels in tables]
        correlations = [rank_correlation(lengths, rewards) for lengths, rewards in chosen]
        known = [value for value in correlations if value is not None]
        lengths, rewards = (np.concatenate(column) for column in zip(*chosen, strict=True))
        figures[name] = {
            "correlation": float(np.mean(known)) if known else None,
            "bins": _bins(lengths, rewards, edges),
        }
    return figures


def rank_correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float | None:
    """Spearman's; ties have their mean rank. None where one of the two does not vary."""
    if len(left) < 2 or len(set(left)) < 2 or len(set(right)) < 2:
        return None
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _table(run: FinishedRun, prompt_ids: list[str]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Length, standardised reward and label of every judged response."""
    problems = [run.candidates[key] for key in prompt_ids]
    judged = np.concatenate([problem.judged_N for problem in problems])
    lengths = np.concatenate([problem.lengths_N for problem in problems])[judged]
    rewards = np.concatenate([problem.rewards_N for problem in problems])[judged]
    labels = np.concatenate([problem.correct_N for problem in problems])[judged]
    return lengths, (rewards - rewards.mean()) / (rewards.std() or 1.0), labels


def _bins(lengths: NDArray[Any], rewards: NDArray[Any], edges: NDArray[np.float64]) -> list[dict[str, Any]]:
    found = []
    for low, high in pairwise(edges):
        inside = (lengths >= low) & ((lengths < high) | (high == edges[-1]) & (lengths <= high))
        if inside.sum() >= _FEWEST:
            mean_length = float(lengths[inside].mean())
            found.append({"length": mean_length, "reward": float(rewards[inside].mean()), "num": int(inside.sum())})
    return found
