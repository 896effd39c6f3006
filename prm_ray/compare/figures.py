"""Methods -> figures with intervals, plain values ready for JSON.

Every interval is a 95 % bootstrap over problems of the mean over seeds, and all methods share the resampled problems,
so differences are paired. What another training seed changes stands beside it, as the value of each seed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_ray.compare.cost import training_cost
from prm_ray.compare.lengths import length_figures
from prm_ray.compare.methods import PASS_AT_1, Comparison, Method, differences
from prm_ray.compare.runs import FinishedRun
from prm_ray.core.metrics import auc, percentile_interval, ratio_interval, resample_means

UNTRAINED = {"majority": "Majority vote", "ref_logprob_mean": "Untrained reference's log-prob", "oracle": "Oracle"}
"""Ways of picking that need no reward model, with their names."""


class Resamples:
    """The resampled problems, the same for every figure of a comparison."""

    def __init__(self, comparison: Comparison):
        num_problems = len(comparison.prompt_ids)
        self._weights_RP = resample_means(np.eye(num_problems), comparison.num_bootstrap, comparison.seed)

    def mean(self, values_SP: NDArray[np.float64]) -> dict[str, Any]:
        """Mean over seeds and problems, its interval over problems, and the mean of each seed."""
        values_P = values_SP.mean(axis=0)
        interval = percentile_interval(float(values_P.mean()), self._weights_RP @ values_P)
        return asdict(interval) | {"by_seed": values_SP.mean(axis=1).tolist()}

    def ratio(self, above_SP: NDArray[np.float64], below_SP: NDArray[np.float64]) -> dict[str, Any]:
        """Sum over seeds and problems divided by another such sum, in the same way."""
        above_P, below_P = above_SP.mean(axis=0), below_SP.mean(axis=0)
        resampled = (self._weights_RP @ above_P, self._weights_RP @ below_P)
        interval = ratio_interval(float(above_P.mean()), float(below_P.mean()), *resampled)
        sums = zip(above_SP.sum(axis=1).tolist(), below_SP.sum(axis=1).tolist(), strict=True)
        return asdict(interval) | {"by_seed": [above / below if below else None for above, below in sums]}


def comparison_figures(comparison: Comparison) -> dict[str, Any]:
    """Everything the page shows but the examples, and what comparison.json holds."""
    resamples = Resamples(comparison)
    first = comparison.methods[0]
    edges = np.quantile(_lengths(first, comparison), np.linspace(0, 1, 7))
    return {
        "num_problems": len(comparison.prompt_ids),
        "num_bootstrap": comparison.num_bootstrap,
        "sizes": comparison.sizes,
        "seeds": sorted({run.seed for method in comparison.methods for run in method.runs}),
        "notes": comparison.notes,
        "untrained": _untrained(first, comparison, resamples),
        "methods": [
            _method_figures(method, comparison, resamples)
            | {"length": length_figures(method, comparison.prompt_ids, np.unique(edges))}
            for method in comparison.methods
        ],
    }


def _lengths(method: Method, comparison: Comparison) -> NDArray[np.int64]:
    return np.concatenate([method.runs[0].candidates[key].lengths_N for key in comparison.prompt_ids])


def _untrained(method: Method, comparison: Comparison, resamples: Resamples) -> dict[str, Any]:
    """By way of picking: label, and accuracy by str(N). They do not depend on the method, only on the candidates."""
    run = method.runs[0]
    one = resamples.mean(np.array([[run.candidates[key].correct_N.mean() for key in comparison.prompt_ids]]))
    rows = {PASS_AT_1: {"label": "One sample", "accuracy": {str(n): one for n in comparison.sizes}}}
    for way, label in UNTRAINED.items():
        if all(method.has(way, n) for n in comparison.sizes):
            first_seed = Method(method.runs[:1])
            by_size = {str(n): resamples.mean(comparison.accuracy_SP(first_seed, way, n)) for n in comparison.sizes}
            rows[way] = {"label": label, "accuracy": by_size}
    return rows


def _method_figures(method: Method, comparison: Comparison, resamples: Resamples) -> dict[str, Any]:
    first, largest = comparison.methods[0], comparison.sizes[-1]
    headline, vote = f"prm_{method.aggregation}", f"weighted_{method.aggregation}"

    def accuracy_SP(way: str, n: int = largest) -> NDArray[np.float64]:
        return comparison.accuracy_SP(method, way, n)

    ours_SP = accuracy_SP(headline)
    theirs_SP = comparison.accuracy_SP(first, f"prm_{first.aggregation}", largest)
    by_aggregation = method.runs[0].config["rerank"]["aggregations"]
    return {
        "name": method.name,
        "label": method.label,
        "group": method.group,
        "seeds": [run.seed for run in method.runs],
        "runs": [_run_figures(run) for run in method.runs],
        "aggregation": method.aggregation,
        "reward_kind": _kind_of_reward(method),
        "settings": {key: now for key, (_, now) in differences(first.settings, method.settings).items()},
        "accuracy": {str(n): resamples.mean(accuracy_SP(headline, n)) for n in comparison.sizes},
        "against_first": resamples.mean(ours_SP - theirs_SP.mean(axis=0)),
        "against_majority": resamples.mean(ours_SP - accuracy_SP("majority")),
        "against_ref_logprob_mean": resamples.mean(ours_SP - accuracy_SP("ref_logprob_mean")),
        "by_aggregation": {how: resamples.mean(accuracy_SP(f"prm_{how}")) for how in by_aggregation},
        "picked_by": _by_kind_of_reward(method, comparison, resamples),
        "vote": {str(n): resamples.mean(accuracy_SP(vote, n)) for n in comparison.sizes},
        "vote_gain": resamples.mean(accuracy_SP(vote) - accuracy_SP("majority")),
        **_ranking(method, comparison, resamples),
        **_steps(method, comparison, resamples),
    }


def _kind_of_reward(method: Method) -> str:
    """`log_ratio`, `log_prob` where it is taken without the reference, or the head or published style that gives it."""
    run = method.runs[0]
    return run.reward if run.reward != "log_ratio" or run.report["with_reference"] else "log_prob"


def _by_kind_of_reward(method: Method, comparison: Comparison, resamples: Resamples) -> dict[str, Any]:
    """Best-of-N by the log-ratio to the reference and by the log-prob alone, where picks/ has both."""
    own = _kind_of_reward(method)
    other = "log_prob" if own == "log_ratio" else "log_ratio"
    counterpart = "prm_without_reference" if own == "log_ratio" else "prm_with_reference"
    ways = {own: f"prm_{method.aggregation}", other: f"{counterpart}_{method.aggregation}"}
    n = comparison.sizes[-1]
    if not method.has(ways[other], n):
        return {}
    return {kind: resamples.mean(comparison.accuracy_SP(method, way, n)) for kind, way in sorted(ways.items())}


def _run_figures(run: FinishedRun) -> dict[str, Any]:
    cost = training_cost(run.folder)
    stages = {row["stage"]: row for row in run.report["stages"]}
    return {
        "folder": str(run.folder),
        "seed": run.seed,
        "code_revision": run.report["code_revision"],
        "train_seconds": stages.get("train", {}).get("seconds"),
        "flops": None if cost is None else asdict(cost) | {"total": cost.total},
    }


def _ranking(method: Method, comparison: Comparison, resamples: Resamples) -> dict[str, Any]:
    """AUC of the headline reward: within a problem (mean over problems with right and wrong ones), and over all."""
    within_SP, overall = [], []
    for run in method.runs:
        problems = [run.candidates[key] for key in comparison.prompt_ids]
        scores = [problem.rewards_N[problem.judged_N] for problem in problems]
        labels = [problem.correct_N[problem.judged_N] for problem in problems]
        within_SP.append([auc(*pair) for pair in zip(scores, labels, strict=True)])
        overall.append(auc(np.concatenate(scores), np.concatenate(labels)))
    values_SP = np.array(within_SP, dtype=np.float64)  # None becomes nan
    defined_SP = np.isfinite(values_SP)
    return {
        "auc_within": resamples.ratio(np.where(defined_SP, values_SP, 0.0), defined_SP.astype(np.float64)),
        "auc_overall": None if None in overall else float(np.mean([value for value in overall if value is not None])),
    }


def _steps(method: Method, comparison: Comparison, resamples: Resamples) -> dict[str, Any]:
    """How often the lowest step reward of a wrong response is on its first wrong step, and a random step would be."""
    problems = [[run.candidates[key] for key in comparison.prompt_ids] for run in method.runs]
    hits_SP, chances_SP, counts_SP = (
        np.array([[getattr(problem, name) for problem in row] for row in problems], dtype=np.float64)
        for name in ("step_hits", "step_chances", "num_step_checks")
    )
    if not counts_SP.any():
        return {"first_wrong_step": None}
    return {
        "first_wrong_step": resamples.ratio(hits_SP, counts_SP)
        | {
            "chance": resamples.ratio(chances_SP, counts_SP)["value"],
            "num_responses": int(counts_SP[0].sum()),
        }
    }
