"""Runs -> methods (seeds pooled) on the problems that all have, with the settings in which methods differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_ray.compare.runs import FinishedRun
from prm_ray.errors import UserError
from prm_ray.settings import OF_OBJECTIVES, OF_REWARDS

_NOT_COMPARED = {"run.dir", "run.seed", "run.num_cpus", "train.seed"}
_SECTIONS_NOT_COMPARED = {"serve"}
_OF_TRAINING = ("select", "step_label", "train")
_OF_LOG_RATIOS = ("with_reference", "beta_schedule")
"""Keys of [score] that heads and published models have no use for."""
PASS_AT_1 = "pass@1"


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seed alone."""

    runs: list[FinishedRun]

    @property
    def name(self) -> str:
        return self.runs[0].name

    @property
    def label(self) -> str:
        return self.runs[0].label

    @property
    def group(self) -> str:
        return self.runs[0].group

    @property
    def aggregation(self) -> str:
        return self.runs[0].aggregation

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.runs[0])

    def has(self, way: str, n: int) -> bool:
        return all((way, n) in run.accuracy for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Methods on common problems, P of them, in one order."""

    methods: list[Method]
    prompt_ids: list[str]
    sizes: list[int]
    num_bootstrap: int
    seed: int
    notes: list[str]

    def accuracy_SP(self, method: Method, way: str, n: int) -> NDArray[np.float64]:
        """Of each seed on each problem: share of random sets of n candidates whose pick is right."""
        return np.array([[run.accuracy[way, n][key] for key in self.prompt_ids] for run in method.runs])


def compare_methods(runs: list[FinishedRun], notes: list[str]) -> Comparison:
    """Pool the runs. Raises `UserError` if two are the same or differ in more than the seed, or share no problem."""
    by_name: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    methods = [Method(sorted(pooled, key=lambda run: run.seed)) for pooled in by_name.values()]
    for method in methods:
        _check_pooled(method)
    prompt_ids, told = _common_problems(runs)
    sizes = sorted(set.intersection(*({n for _, n in run.accuracy} for run in runs)))
    if not sizes:
        raise UserError("these runs have no N (rerank.sizes) in common, so there is nothing to compare")
    first = runs[0].report
    return Comparison(
        methods, prompt_ids, sizes, first["num_bootstrap"], first["seed"], [*notes, *told, *_other_candidates(runs)]
    )


def settings_of(run: FinishedRun) -> dict[str, Any]:
    """`section.key` -> value of all that says what the run is; folders of other runs without their seed.

    Settings that its reward or objective makes no use of are left out, and all of training where a published model
    scores; the aggregation is the one that was used.
    """
    unused = _NOT_COMPARED | _unused(run)
    settings = {
        f"{section}.{key}": _without_seed(value, run)
        for section, values in run.config.items()
        for key, value in values.items()
        if f"{section}.{key}" not in unused and section not in _SECTIONS_NOT_COMPARED
    }
    return settings | {"evaluate.aggregation": run.aggregation}


def _unused(run: FinishedRun) -> set[str]:
    if run.config["score"].get("model") is not None:
        unused = {f"{section}.{key}" for section in _OF_TRAINING for key in run.config.get(section, {})}
        return unused | {f"score.{key}" for key in _OF_LOG_RATIOS}
    unused = {f"score.{key}" for key in _OF_LOG_RATIOS if run.reward != "log_ratio"}
    unused |= {f"train.{key}" for key, rewards in OF_REWARDS.items() if run.reward not in rewards}
    objective = run.config["train"].get("objective", "ce")
    return unused | {f"train.{key}" for key, those in OF_OBJECTIVES.items() if objective not in those}


def _without_seed(value: Any, run: FinishedRun) -> Any:
    """`.../runs/x/ce-1/checkpoint` -> `ce/checkpoint`, for a folder beside this run's own that has its seed."""
    if isinstance(value, str) and value.startswith(beside := f"{run.folder.parent}/"):
        name, slash, rest = value.removeprefix(beside).partition("/")
        return name.removesuffix(f"-{run.seed}") + slash + rest
    return value


def _check_pooled(method: Method) -> None:
    seeds = [run.seed for run in method.runs]
    if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
        folders = " and ".join(repr(str(run.folder)) for run in method.runs if run.seed in twice)
        raise UserError(
            f"{folders} are both {method.name!r} with seed {min(twice)}: give one another name, NAME=FOLDER"
        )
    for run in method.runs[1:]:
        changed = differences(method.settings, settings_of(run))
        if changed:
            key, (before, now) = next(iter(changed.items()))
            raise UserError(
                f"{str(method.runs[0].folder)!r} and {str(run.folder)!r} are both {method.name!r}, but {key} is "
                f"{before!r} in one and {now!r} in the other: give one another name, NAME=FOLDER"
            )


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that both know and that differ."""
    return {key: (before[key], now[key]) for key in before if key in now and before[key] != now[key]}


def _common_problems(runs: list[FinishedRun]) -> tuple[list[str], list[str]]:
    """The problems that all runs have, and what there is to say about it."""
    common = set.intersection(*(set(run.candidates) for run in runs))
    if not common:
        first = runs[0]
        other = next((run for run in runs if not first.candidates.keys() & run.candidates.keys()), runs[-1])
        raise UserError(
            f"{str(first.folder)!r} ({len(first.candidates)} held-out problems) and {str(other.folder)!r} "
            f"({len(other.candidates)}) have no held-out problem in common with all others: nothing can be compared"
        )
    counts = [len(run.candidates) for run in runs]
    if max(counts) == len(common):
        return [key for key in runs[0].candidates if key in common], []
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    told = f"The runs do not have the same held-out problems ({each} of them): all figures are of the {len(common)} "
    return [key for key in runs[0].candidates if key in common], [told + "that every run has."]


def _other_candidates(runs: list[FinishedRun]) -> list[str]:
    others = [run.folder.name for run in runs if not same_candidates(runs[0], run)]
    if not others:
        return []
    return [
        f"The candidates of {', '.join(others)} are not those of {runs[0].folder.name}: what differs there is the "
        "candidates as well as the method, and the rows without training are of the latter."
    ]


def same_candidates(one: FinishedRun, other: FinishedRun) -> bool:
    """On the problems that both have."""
    pairs = [(one.candidates[key], other.candidates[key]) for key in one.candidates if key in other.candidates]
    return all(
        np.array_equal(a.sample_index_N, b.sample_index_N)
        and np.array_equal(a.correct_N, b.correct_N)
        and np.array_equal(a.lengths_N, b.lengths_N)
        for a, b in pairs
    )
