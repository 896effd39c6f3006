"""ProcessBench's figures from the scored table: F1 by protocol and subset, beside what needs no model.

The headline threshold of a protocol is chosen on one subset and used on all. A threshold chosen on the subset it is
measured on is an `oracle threshold`, and stands beside the headline only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prm_ray.config import RunConfig
from prm_ray.core.processbench import (
    PROTOCOLS,
    RIGHT,
    ProcessBenchScore,
    best_threshold,
    best_uniform_threshold,
    defined_interval,
    first_below,
    mean_f1,
    process_bench_score,
    resampled_scores,
    step_scores,
    uniform_score,
)
from prm_ray.errors import UserError
from prm_ray.settings import ProcessBenchSection
from prm_ray.stages.report import bracket
from prm_ray.tables import StageFolder, count_failures, in_words, write_json

_COLUMNS = ["subset", "label", "step_ends", "step_rewards", "num_empty_steps", "error"]
_UNKNOWN = np.array([np.nan])
"""Resamples of what is not defined."""


@dataclass
class Subset:
    """What was scored of one subset: N labels and the step rewards of as many solutions."""

    labels: list[int] = field(default_factory=list)
    step_ends: list[list[int]] = field(default_factory=list)
    step_rewards: list[list[float]] = field(default_factory=list)
    num_with_empty_steps: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_steps(self) -> list[int]:
        return [len(ends) for ends in self.step_ends]

    def add(self, row: dict[str, Any]) -> None:
        if row["error"] is None and not all(map(math.isfinite, row["step_rewards"])):
            row["error"] = "reward is not a finite number"
        if row["error"] is not None:
            self.errors.append(row)
            return
        self.labels.append(row["label"])
        self.step_ends.append(row["step_ends"])
        self.step_rewards.append(row["step_rewards"])
        self.num_with_empty_steps += row["num_empty_steps"] > 0

    def scores(self, protocol: str) -> list[list[float]]:
        return [step_scores(r, e, protocol) for r, e in zip(self.step_rewards, self.step_ends, strict=True)]

    def lengths(self, of: Literal["step", "prefix"]) -> list[list[float]]:
        """Minus the number of tokens of each step, or up to its end."""
        starts = [[0, *ends[:-1]] if of == "step" else [0] * len(ends) for ends in self.step_ends]
        return [
            [float(start - end) for start, end in zip(first, last, strict=True)]
            for first, last in zip(starts, self.step_ends, strict=True)
        ]

    def counts(self) -> dict[str, Any]:
        return {
            "num_solutions": len(self.labels),
            "num_with_a_wrong_step": sum(label != RIGHT for label in self.labels),
            "num_single_step": self.num_steps.count(1),
            "num_with_empty_steps": self.num_with_empty_steps,
            "failed": count_failures(self.errors, "error"),
        }


def make_report(config: RunConfig, folder: StageFolder) -> dict[str, Any]:
    """Everything in report.json. Raises `UserError` if failures left nothing to choose a threshold on."""
    section = config.processbench
    subsets = {name: Subset() for name in section.subsets}
    for row in folder.rows(_COLUMNS):
        subsets[row["subset"]].add(row)
    if len({label == RIGHT for label in subsets[section.threshold_from].labels}) < 2:
        failed = in_words(subsets[section.threshold_from].counts()["failed"])
        raise UserError(
            f"of processbench subset {section.threshold_from!r} too little could be scored to choose a threshold on "
            f"(failed: {failed}); choose another processbench.threshold_from"
        )
    protocols = PROTOCOLS if config.reward == "log_ratio" else ("step",)  # logits of steps do not add up to prefixes
    return {
        "reward": config.reward,
        "threshold_from": section.threshold_from,
        "with_reference": config.score.with_reference,
        "beta_schedule": config.score.beta_schedule,
        "seed": config.run.seed,
        "num_bootstrap": section.num_bootstrap,
        "subsets": {name: subset.counts() for name, subset in subsets.items()},
        "protocols": {protocol: _protocol(config, subsets, protocol) for protocol in protocols},
        "baselines": _baselines(section, subsets),
    }


def _protocol(config: RunConfig, subsets: dict[str, Subset], protocol: str) -> dict[str, Any]:
    section = config.processbench
    scores = {name: subset.scores(protocol) for name, subset in subsets.items()}
    chosen = best_threshold(scores[section.threshold_from], subsets[section.threshold_from].labels)
    figures: dict[str, Any] = {}
    f1: dict[str, float | None] = {}
    resampled: dict[str, NDArray[np.float64]] = {}
    for number, (name, subset) in enumerate(subsets.items()):
        predictions = [first_below(each, chosen) for each in scores[name]]
        score = asdict(process_bench_score(predictions, subset.labels))
        seed = config.run.seed + number  # subsets are resampled independently of each other
        draws = resampled_scores(predictions, subset.labels, section.num_bootstrap, seed) if predictions else {}
        figures[name] = {key: asdict(defined_interval(value, draws.get(key, _UNKNOWN))) for key, value in score.items()}
        figures[name]["oracle_threshold"] = _oracle(scores[name], subset.labels)
        f1[name], resampled[name] = score["f1"], draws.get("f1", _UNKNOWN)
    return {"threshold": chosen, "subsets": figures} | _means(section, f1, resampled)


def _means(
    section: ProcessBenchSection, f1: dict[str, float | None], resampled: dict[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """The mean over all subsets, and over those that the threshold was not chosen on."""
    others = [name for name in section.subsets if name != section.threshold_from]
    return {
        key: asdict(mean_f1([f1[name] for name in names], [resampled[name] for name in names]))
        for key, names in (("mean_f1", section.subsets), ("mean_f1_of_others", others))
    }


def _oracle(scores: list[list[float]], labels: Sequence[int]) -> dict[str, Any] | None:
    """The best that any threshold does on these solutions themselves: optimistic."""
    if len({label == RIGHT for label in labels}) < 2:
        return None
    threshold = best_threshold(scores, labels)
    predictions = [first_below(each, threshold) for each in scores]
    return {"threshold": threshold, **asdict(process_bench_score(predictions, labels))}


def _baselines(section: ProcessBenchSection, subsets: dict[str, Subset]) -> dict[str, Any]:
    """What needs no model, thresholds chosen as ours are: never naming a step, naming one at random, and naming the
    first step that is long, or that ends far from the start. Sums of log-probs fall with length, so rewards without a
    reference have to beat those two."""
    chosen = subsets[section.threshold_from]
    threshold = best_uniform_threshold(chosen.num_steps, chosen.labels)
    labels = {name: subset.labels for name, subset in subsets.items()}
    methods = {
        "always -1": {key: process_bench_score([RIGHT] * len(each), each) for key, each in labels.items()},
        "random scores": {key: uniform_score(each.num_steps, each.labels, threshold) for key, each in subsets.items()},
        "step length": _thresholded(section, subsets, "step"),
        "prefix length": _thresholded(section, subsets, "prefix"),
    }
    found: dict[str, Any] = {}
    for method, scores in methods.items():
        means = _means(section, {name: score.f1 for name, score in scores.items()}, dict.fromkeys(scores, _UNKNOWN))
        found[method] = {"subsets": {name: asdict(score) for name, score in scores.items()}}
        found[method] |= {key: interval["value"] for key, interval in means.items()}
    return found | {"random scores": found["random scores"] | {"threshold": threshold}}


def _thresholded(
    section: ProcessBenchSection, subsets: dict[str, Subset], of: Literal["step", "prefix"]
) -> dict[str, ProcessBenchScore]:
    scores = {name: subset.lengths(of) for name, subset in subsets.items()}
    chosen = best_threshold(scores[section.threshold_from], subsets[section.threshold_from].labels)
    return {
        name: process_bench_score([first_below(each, chosen) for each in scores[name]], subset.labels)
        for name, subset in subsets.items()
    }


def write_report(report: dict[str, Any], folder: Path) -> str:
    """report.json and report.md; returns the table for a terminal."""
    write_json(folder / "report.json", report)
    head, rows = _cells(report)
    lines = [" | ".join(line) for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    (folder / "report.md").write_text(
        "".join(f"| {line} |\n" for line in lines) + f"\n{_note(report)}\n", encoding="utf-8"
    )
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    shown = [
        line[0].ljust(widths[0])
        + "".join(cell.rjust(width + 2) for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in (head, *rows)
    ]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:], "", _note(report)])


def _cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(report["subsets"])
    head = ["ProcessBench F1, % [95 %]", *names, "mean", f"mean without {report['threshold_from']}"]
    rows = []
    for protocol, figures in report["protocols"].items():
        subsets = [figures["subsets"][name] for name in names]
        means = [figures["mean_f1"], figures["mean_f1_of_others"]]
        rows.append([protocol, *(_interval(each) for each in [*(subset["f1"] for subset in subsets), *means])])
        for key, title in (("error_accuracy", "of wrong ones"), ("correct_accuracy", "of right ones")):
            rows.append([f"  accuracy {title}", *(_interval(subset[key]) for subset in subsets), "", ""])
        oracle = [subset["oracle_threshold"] for subset in subsets]
        rows.append(["  oracle threshold", *(_percent(each and each["f1"]) for each in oracle), "", ""])
    for method, figures in report["baselines"].items():
        means = [figures["mean_f1"], figures["mean_f1_of_others"]]
        rows.append(
            [method, *(_percent(each) for each in [*(figures["subsets"][name]["f1"] for name in names), *means])]
        )
    return head, rows


def _note(report: dict[str, Any]) -> str:
    failed = {name: counts["failed"] for name, counts in report["subsets"].items() if counts["failed"]}
    each = "; ".join(f"of {name} {in_words(reasons)}" for name, reasons in failed.items())
    left_out = f" Left out: {each}." if failed else ""
    return (
        f"Thresholds are chosen on {report['threshold_from']} and used on all subsets; the oracle threshold is chosen "
        f"on the very subset it is measured on.{left_out}"
    )


def _interval(figures: dict[str, float | None]) -> str:
    return f"{_percent(figures['value'])} {bracket(figures)}".strip()


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"
