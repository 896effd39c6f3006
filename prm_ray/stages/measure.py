"""Turn picks/ and the candidates into figures with intervals; everything here is plain values, ready for JSON.

Every interval is a 95 % bootstrap over problems, and all methods share the resampled problems, so differences and
ratios are paired.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_ray.config import RunConfig
from prm_ray.core.metrics import (
    Interval,
    auc,
    difference_interval,
    percentile_interval,
    ratio_interval,
    resample_means,
    within_problem_auc,
)
from prm_ray.errors import UserError
from prm_ray.stages.candidates import REFERENCE, REWARDS, Candidates, counterparts
from prm_ray.tables import StageFolder

PASS_AT_1 = "pass@1"


@dataclass(frozen=True)
class Accuracies:
    """Accuracy of each (method, n) on each problem."""

    columns: list[tuple[str, int]]
    """The first is (pass@1, 1): the mean over all candidates."""
    values_PM: NDArray[np.float64]
    resampled_RM: NDArray[np.float64]

    @property
    def sizes(self) -> list[int]:
        return sorted({n for method, n in self.columns if method != PASS_AT_1})

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.columns))

    def interval(self, column: int) -> Interval:
        return percentile_interval(float(self.values_PM[:, column].mean()), self.resampled_RM[:, column])

    def against(self, ours: int, theirs: int) -> dict[str, Any]:
        our_value, their_value = (float(self.values_PM[:, column].mean()) for column in (ours, theirs))
        ours_R, theirs_R = self.resampled_RM[:, ours], self.resampled_RM[:, theirs]
        return {
            "difference": asdict(difference_interval(our_value, their_value, ours_R, theirs_R)),
            "ratio": asdict(ratio_interval(our_value, their_value, ours_R, theirs_R)),
        }


def read_accuracies(config: RunConfig, problems: list[Candidates], picks: StageFolder) -> Accuracies:
    """Put picks/ and pass@1 into one matrix. Raises `UserError` if picks/ is not about the same problems."""
    by_column: dict[tuple[str, int], dict[str, float]] = {
        (PASS_AT_1, 1): {problem.prompt_id: float(problem.correct_N.mean()) for problem in problems}
    }
    for row in picks.rows(["prompt_id", "method", "n", "accuracy"]):
        by_column.setdefault((row["method"], row["n"]), {})[row["prompt_id"]] = row["accuracy"]
    prompt_ids = [problem.prompt_id for problem in problems]
    for (method, n), accuracy in by_column.items():
        if accuracy.keys() != set(prompt_ids):
            raise UserError(
                f"{str(picks.path)!r} has {method} at N = {n} for {len(accuracy)} problems, scores/ has "
                f"{len(prompt_ids)} problems with candidates: redo it with --fresh rerank"
            )
    values_PM = np.array([[accuracy[key] for accuracy in by_column.values()] for key in prompt_ids])
    resampled_RM = resample_means(values_PM, config.evaluate.num_bootstrap, config.run.seed)
    return Accuracies(list(by_column), values_PM, resampled_RM)


def accuracy_figures(accuracies: Accuracies) -> dict[str, Any]:
    """`pass@1`, `accuracy`, and differences and ratios `against_` rivals: by method and then by str(n)."""
    figures: dict[str, Any] = {
        PASS_AT_1: asdict(accuracies.interval(0)),
        "accuracy": {},
        "against_pass@1": {},
        "against_majority": {},
        "against_ref_logprob_mean": {},
    }
    place = {column: index for index, column in enumerate(accuracies.columns)}
    for (method, n), index in place.items():
        if method == PASS_AT_1:
            continue
        figures["accuracy"].setdefault(method, {})[str(n)] = asdict(accuracies.interval(index))
        figures["against_pass@1"].setdefault(method, {})[str(n)] = accuracies.against(index, 0)
        for rival in ("majority", "ref_logprob_mean"):
            figures[f"against_{rival}"].setdefault(method, {})[str(n)] = accuracies.against(index, place[rival, n])
    return figures


def auc_figures(config: RunConfig, problems: list[Candidates]) -> dict[str, Any]:
    """Reward -> AUC over all judged candidates, and within a problem (mean over problems; pair-weighted beside it)."""
    judged = [problem.judged_N for problem in problems]
    labels = [problem.correct_N[mask] for problem, mask in zip(problems, judged, strict=True)]
    figures = {}
    for name in (*REWARDS, *counterparts(config), *REFERENCE):
        scores = [problem.rewards[name][mask] for problem, mask in zip(problems, judged, strict=True)]
        within = within_problem_auc(list(zip(scores, labels, strict=True)))
        defined = [value for value in within.per_problem if value is not None]
        interval = Interval(None, None, None)
        if within.mean is not None:
            resampled_RM = resample_means(np.array(defined)[:, None], config.evaluate.num_bootstrap, config.run.seed)
            interval = percentile_interval(within.mean, resampled_RM[:, 0])
        figures[name] = {
            "overall": auc(np.concatenate(scores), np.concatenate(labels)),
            "within_problem": asdict(interval),
            "within_problem_pair_weighted": within.pair_weighted,
            "num_problems_with_both": within.num_problems,
            "num_pairs": within.num_pairs,
        }
    return figures


def prm_accuracy_figures(config: RunConfig, problems: list[Candidates]) -> dict[str, Any] | None:
    """How often the sign of the response reward (sum; of a head its last logit) tells right from wrong, over judged
    candidates.

    sigmoid(reward) is the trained probability of `right`, so 0 is the threshold; `always_the_same` is what
    calling all of them right, or all of them wrong, would reach. None without the reference: such a reward is never
    above 0.
    """
    is_head = config.reward != "log_ratio"
    if not is_head and not config.score.with_reference:
        return None
    name = "prm_last" if is_head else "prm_sum"
    hits = [((p.rewards[name] > 0) == p.correct_N)[p.judged_N].sum() for p in problems]
    counts = [p.judged_N.sum() for p in problems]
    num_judged = int(sum(counts))
    if num_judged == 0:
        return {"accuracy": asdict(Interval(None, None, None)), "always_the_same": None, "num_candidates": 0}
    share_right = sum(int(p.correct_N.sum()) for p in problems) / num_judged
    return {
        "accuracy": asdict(share_interval(config, hits, counts)),
        "always_the_same": max(share_right, 1 - share_right),
        "num_candidates": num_judged,
    }


def share_interval(config: RunConfig, hits: list[Any], counts: list[Any]) -> Interval:
    """sum(hits) / sum(counts) with an interval over the problems they are given for."""
    values_PM = np.stack([np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)], axis=1)
    resampled_RM = resample_means(values_PM, config.evaluate.num_bootstrap, config.run.seed)
    hits_mean, counts_mean = values_PM.mean(axis=0)
    return ratio_interval(hits_mean, counts_mean, resampled_RM[:, 0], resampled_RM[:, 1])
