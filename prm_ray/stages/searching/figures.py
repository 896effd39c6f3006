"""The figures of a search: accuracy of each strategy by what it cost, with intervals over problems.

Suffixes: P problems, M columns, R resamples. A strategy is compared with best-of-N at the tokens it took itself:
best-of-N's accuracy at every n is known from its N candidates, and lies on a line between two of them. What is counted
are tokens that were sampled; neither prompts nor scoring are in them. A problem for which no response ended is a wrong
answer, under every strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prm_ray.config import RunConfig
from prm_ray.core.metrics import difference_interval, percentile_interval, ratio_interval, resample_means
from prm_ray.search.picking import PICKS
from prm_ray.stages.searching.arms import ORACLE, Arm, Arms, BestOfN, Searched

SAVES_TOKENS = ("adaptive", "rejection", "adaptive_rejection")
"""Strategies whose size is a number of responses that they try to stay below."""
Figures = dict[str, Any]


def make_report(config: RunConfig, arms: Arms, usage: Figures) -> Figures:
    whole = _whole(config, arms)
    order = list(config.search.strategies)
    places = {arm: (order.index(arm[0]) if arm[0] in order else len(order), arm[1]) for arm in arms.by_arm}
    return {
        "pick": config.search.pick,
        "aggregation": config.search.aggregation or config.aggregation,
        "seed": config.run.seed,
        "num_bootstrap": config.search.num_bootstrap,
        "num_problems": max(map(len, arms.by_arm.values()), default=0),
        "num_problems_not_asked": len(arms.not_asked),
        "num_candidates": arms.num_candidates,
        "failed": dict(arms.failed),
        "num_that_could_not_be_judged": arms.num_not_judged,
        "best_of_n": _curve(config, whole) if whole else [],
        "arms": [_figures(config, arm, arms.by_arm[arm], whole) for arm in sorted(arms.by_arm, key=places.__getitem__)],
        "usage": usage,
        "config": config.model_dump(mode="json", by_alias=True),
    }


def _whole(config: RunConfig, arms: Arms) -> BestOfN | None:
    """None if best-of-N was not searched, or ended with no response at all."""
    sizes = [size for strategy, size in arms.by_arm if strategy == "best_of_n"]
    if not sizes:
        return None
    whole = BestOfN(arms.by_arm["best_of_n", max(sizes)], config.run.seed)
    return whole if whole.most else None


def _figures(config: RunConfig, arm: Arm, problems: list[Searched], whole: BestOfN | None) -> Figures:
    right_PM = np.array([[how in problem.right for how in PICKS] for problem in problems])
    figures: Figures = {
        "strategy": arm[0],
        "size": arm[1],
        "num_problems": len(problems),
        "tokens_per_problem": float(np.mean([problem.tokens for problem in problems])),
        "responses_per_problem": float(np.mean([problem.num_ended for problem in problems])),
        "problems_without_answer": sum(not problem.num_competing for problem in problems),
        "accuracy": _means(config, PICKS, right_PM),
    }
    if whole is None:
        return figures
    ours, theirs = whole.places(problems)
    if not ours:
        return figures
    shared = _Shared(config, whole, [problems[place] for place in ours], theirs)
    figures["against_one_sample"] = shared.difference(1.0)["difference"]
    if arm[0] != "best_of_n":
        figures["against_best_of_n"] = shared.at_equal_tokens()
    if arm[0] in SAVES_TOKENS and arm[1] <= whole.most:
        figures["against_fixed_n"] = shared.against_fixed(arm[1])
    return figures


class _Shared:
    """An arm beside best-of-N, on the problems that both have; intervals are paired over problems."""

    def __init__(self, config: RunConfig, whole: BestOfN, ours: list[Searched], theirs: list[int]):
        self._config, self._whole, self._theirs = config, whole, theirs
        self._tokens_P = np.array([problem.tokens for problem in ours], dtype=np.float64)
        self._all_tokens_P = whole.tokens_P[theirs]
        self._right_PM = np.array([[how in problem.right for how in PICKS] for problem in ours], dtype=np.float64)

    def at_equal_tokens(self) -> Figures:
        """Against as many responses as cost the same on average.

        `is_beyond`: it took more tokens than all N responses, so it is compared with all of them.
        """
        spent, most = self._tokens_P.mean() / self._all_tokens_P.mean(), float(self._whole.most)
        found = self.difference(float(np.clip(most * spent, 1.0, most)))
        return found | {"is_beyond": bool(spent > 1)}

    def against_fixed(self, size: int) -> Figures:
        """Against `size` responses to every problem: the share of their tokens that was saved, and the accuracy."""
        fixed_P = self._all_tokens_P * size / self._whole.most
        resampled_R2 = self._resample(np.column_stack([self._tokens_P, fixed_P]))
        ratio = ratio_interval(self._tokens_P.mean(), fixed_P.mean(), resampled_R2[:, 0], resampled_R2[:, 1])
        saved = {
            key: None if bound is None else 1 - bound
            for key, bound in zip(("value", "low", "high"), (ratio.value, ratio.high, ratio.low), strict=True)
        }
        return self.difference(float(size)) | {"tokens_saved": saved}

    def difference(self, n: float) -> Figures:
        """Way of picking -> accuracy of n responses, and ours minus that."""
        theirs_PM = np.column_stack([self._whole.accuracy_P(how, n)[self._theirs] for how in PICKS])
        resampled_RM = self._resample(np.hstack([self._right_PM, theirs_PM]))
        ours_M, theirs_M = self._right_PM.mean(axis=0), theirs_PM.mean(axis=0)
        ours_RM, theirs_RM = np.hsplit(resampled_RM, 2)
        differences = [
            asdict(difference_interval(ours, theirs, ours_RM[:, at], theirs_RM[:, at]))
            for at, (ours, theirs) in enumerate(zip(ours_M, theirs_M, strict=True))
        ]
        return {
            "n": n,
            "tokens_per_problem": float(self._all_tokens_P.mean() * n / self._whole.most),
            "accuracy": {how: float(theirs) for how, theirs in zip(PICKS, theirs_M, strict=True)},
            "difference": dict(zip(PICKS, differences, strict=True)),
        }

    def _resample(self, values_PM: np.ndarray) -> np.ndarray:
        return resample_means(values_PM, self._config.search.num_bootstrap, self._config.run.seed)


def _curve(config: RunConfig, whole: BestOfN) -> list[Figures]:
    """Best-of-N at 1, 2, 4 ... and all responses, on the same problems."""
    sizes = sorted({2**power for power in range(whole.most.bit_length())} | {whole.most})
    ways = (*PICKS, ORACLE)
    return [
        {
            "n": n,
            "tokens_per_problem": float(whole.tokens_P.mean() * n / whole.most),
            "accuracy": _means(config, ways, np.column_stack([whole.accuracy_P(how, n) for how in ways])),
        }
        for n in sizes
    ]


def _means(config: RunConfig, ways: Sequence[str], values_PM: ArrayLike) -> dict[str, Figures]:
    """Way of picking -> mean of its column, with interval."""
    values_PM = np.asarray(values_PM, dtype=np.float64)
    resampled_RM = resample_means(values_PM, config.search.num_bootstrap, config.run.seed)
    means_M = values_PM.mean(axis=0)
    return {how: asdict(percentile_interval(float(means_M[at]), resampled_RM[:, at])) for at, how in enumerate(ways)}
