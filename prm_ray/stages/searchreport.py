"""The figures of a search: accuracy of each strategy by what it cost, with intervals over problems.

Suffixes: P problems. A strategy is compared with best-of-N at the tokens it took itself: best-of-N's accuracy at every
n is known exactly from its N candidates, and lies on a line between two of them.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_ray.config import RunConfig
from prm_ray.core.metrics import difference_interval, pass_at_k, percentile_interval, resample_means
from prm_ray.core.selection import best_of_n_accuracy, log_vote_weights, subsets, vote_accuracy
from prm_ray.search.picking import PICKS
from prm_ray.stages.report import bracket, percent, points_with_interval
from prm_ray.tables import StageFolder, count_failures, write_json

_COLUMNS = ["prompt_id", "strategy", "size", "candidate", "num_sampled", "value", "competes", "picked_by", "answer"]
_COLUMNS += ["correct", "finish_reason", "error", "label_error"]
_SUBSETS = 64
"""Random sets of n candidates that a vote at n is averaged over."""
Arm = tuple[str, int]
"""Strategy and size."""


@dataclass
class Searched:
    """One problem under one arm."""

    prompt_id: str
    rows: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        return sum(row["num_sampled"] for row in self.rows)

    @property
    def competing(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["competes"]]

    def is_right(self, how: str) -> bool:
        """Whether the response that this way of picking takes is right; none is not."""
        return any(row["correct"] is True for row in self.rows if how in (row["picked_by"] or ()))


def make_report(config: RunConfig, folder: StageFolder) -> dict[str, Any]:
    arms = read_arms(folder)
    usage = folder.path / "usage.json"
    report: dict[str, Any] = {
        "pick": config.search.pick,
        "aggregation": config.search.aggregation or config.aggregation,
        "seed": config.run.seed,
        "num_bootstrap": config.search.num_bootstrap,
        "num_problems": max(map(len, arms.values()), default=0),
        "failed": count_failures((row for row in _rows(arms)), "error"),
        "num_that_could_not_be_judged": sum(row["label_error"] is not None for row in _rows(arms)),
        "arms": [],
        "best_of_n": [],
        "usage": json.loads(usage.read_text()) if usage.is_file() else {},
        "config": config.model_dump(mode="json", by_alias=True),
    }
    whole = next((arms[arm] for arm in arms if arm[0] == "best_of_n"), None)
    if whole is not None:
        report["best_of_n"] = _curve(config, whole)
    report["arms"] = [_figures(config, arm, problems, whole) for arm, problems in sorted(arms.items())]
    return report


def read_arms(folder: StageFolder) -> dict[Arm, list[Searched]]:
    """Arm -> its problems, in the order of their ids, so that arms can be compared problem by problem."""
    rows: dict[Arm, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in folder.rows(_COLUMNS):
        rows[row["strategy"], row["size"]][row["prompt_id"]].append(row)
    return {
        arm: [Searched(prompt_id, problems[prompt_id]) for prompt_id in sorted(problems)]
        for arm, problems in rows.items()
    }


def _rows(arms: dict[Arm, list[Searched]]) -> list[dict[str, Any]]:
    return [row for problems in arms.values() for problem in problems for row in problem.rows]


def _figures(config: RunConfig, arm: Arm, problems: list[Searched], whole: list[Searched] | None) -> dict[str, Any]:
    right_PM = np.array([[problem.is_right(how) for how in PICKS] for problem in problems], dtype=np.float64)
    tokens_P = np.array([problem.tokens for problem in problems], dtype=np.float64)
    resampled_RM = resample_means(right_PM, config.search.num_bootstrap, config.run.seed)
    intervals = [percentile_interval(float(right_PM[:, at].mean()), resampled_RM[:, at]) for at in range(len(PICKS))]
    ended = [row for problem in problems for row in problem.rows if row["finish_reason"]]
    figures = {
        "strategy": arm[0],
        "size": arm[1],
        "num_problems": len(problems),
        "tokens_per_problem": float(tokens_P.mean()),
        "responses_per_problem": len(ended) / len(problems),
        "problems_without_answer": sum(not problem.competing for problem in problems),
        "accuracy": dict(zip(PICKS, map(asdict, intervals), strict=True)),
    }
    shared = _shared(problems, whole)
    if shared and arm[0] != "best_of_n":
        figures["against_best_of_n"] = _against(config, shared)
    return figures


def _shared(problems: list[Searched], whole: list[Searched] | None) -> list[tuple[Searched, Searched]]:
    """Problems that both were searched for, with candidates to compare."""
    others = {problem.prompt_id: problem for problem in whole or [] if problem.competing}
    return [(problem, others[problem.prompt_id]) for problem in problems if problem.prompt_id in others]


def _against(config: RunConfig, shared: list[tuple[Searched, Searched]]) -> dict[str, Any]:
    """Way of picking -> accuracy minus that of best-of-N at the same mean number of tokens, paired over problems.

    `is_beyond`: it took more tokens than all N candidates, so it is compared with all of them.
    """
    mean_tokens = float(np.mean([ours.tokens for ours, _ in shared]))
    theirs_tokens = float(np.mean([theirs.tokens for _, theirs in shared]))
    most = max(len(theirs.competing) for _, theirs in shared)
    n = min(max(1.0, most * mean_tokens / theirs_tokens), float(most))
    found: dict[str, Any] = {"n": n, "is_beyond": mean_tokens > theirs_tokens, "difference": {}}
    for how in PICKS:
        values_P2 = np.array([[ours.is_right(how), _at(config, theirs, how, n)] for ours, theirs in shared])
        ours_R, theirs_R = resample_means(values_P2, config.search.num_bootstrap, config.run.seed).T
        means = values_P2.mean(axis=0)
        interval = difference_interval(float(means[0]), float(means[1]), ours_R, theirs_R)
        found["difference"][how] = asdict(interval)
    return found


def _curve(config: RunConfig, problems: list[Searched]) -> list[dict[str, Any]]:
    """Best-of-N at 1, 2, 4 ... and all candidates, on the same problems."""
    problems = [problem for problem in problems if problem.competing]
    most = max((len(problem.competing) for problem in problems), default=0)
    sizes = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | ({most} if most else set()))
    tokens = float(np.mean([problem.tokens for problem in problems])) if problems else 0.0
    found = []
    for n in sizes:
        values_PM = np.array([[_at(config, problem, how, n) for how in PICKS] for problem in problems])
        oracle_P = np.array([_oracle(problem, n) for problem in problems])
        values_PM = np.column_stack([values_PM, oracle_P])
        resampled_RM = resample_means(values_PM, config.search.num_bootstrap, config.run.seed)
        intervals = [
            asdict(percentile_interval(float(values_PM[:, at].mean()), resampled_RM[:, at]))
            for at in range(values_PM.shape[1])
        ]
        accuracy = dict(zip((*PICKS, "oracle"), intervals, strict=True))
        found.append({"n": n, "tokens_per_problem": tokens * n / most, "accuracy": accuracy})
    return found


def _at(config: RunConfig, problem: Searched, how: str, n: float) -> float:
    """Accuracy of n candidates drawn at random; between two whole numbers on the line between their accuracies."""
    low, share = int(n), n - int(n)
    value = _at_whole(config, problem, how, low)
    return value if not share else (1 - share) * value + share * _at_whole(config, problem, how, low + 1)


def _at_whole(config: RunConfig, problem: Searched, how: str, n: int) -> float:
    rows = problem.competing
    n = min(n, len(rows))
    answers = [row["answer"] for row in rows]
    correct_N = np.array([row["correct"] is True for row in rows])
    values_N: NDArray[np.float64] = np.array([row["value"] for row in rows], dtype=np.float64)
    has_answer_N = np.array([answer is not None for answer in answers])
    if how == "best":
        shown_N = np.where(has_answer_N, values_N, -np.inf) if has_answer_N.any() else values_N
        return best_of_n_accuracy(shown_N, correct_N, n)
    log_weights_N = np.zeros(len(rows)) if how == "majority" else log_vote_weights(values_N, "softmax")
    rng = np.random.default_rng([config.run.seed, zlib.crc32(problem.prompt_id.encode()), n])
    return vote_accuracy(answers, correct_N, log_weights_N, subsets(len(rows), n, _SUBSETS, rng))


def _oracle(problem: Searched, n: int) -> float:
    rows = problem.competing
    return pass_at_k(len(rows), sum(row["correct"] is True for row in rows), min(n, len(rows)))


def write_report(report: dict[str, Any], folder: Path) -> None:
    write_json(folder / "report.json", report)


def text(report: dict[str, Any]) -> str:
    """A line an arm."""
    how = report["pick"]
    lines = [f"right of {report['num_problems']} held-out problems, answer picked by {how.replace('_', ' ')}:"]
    if report["best_of_n"]:
        one = report["best_of_n"][0]
        figures = one["accuracy"][how]
        shown = f"{percent(figures['value'])} {bracket(figures)}"
        lines.append(f"  {'one sample':<16} {shown:<24} {one['tokens_per_problem']:>8,.0f} tokens a problem")
    for arm in report["arms"]:
        figures = arm["accuracy"][how]
        shown = f"{percent(figures['value'])} {bracket(figures)}"
        line = (
            f"  {arm['strategy']:<10} {arm['size']:>4}  {shown:<24} {arm['tokens_per_problem']:>8,.0f} tokens a problem"
        )
        if "against_best_of_n" in arm:
            against = arm["against_best_of_n"]
            line += f", {points_with_interval(against['difference'][how])} against best of {against['n']:.3g}"
        lines.append(line)
    return "\n".join(lines)
