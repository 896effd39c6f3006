"""A finished run as the comparison sees it: which method and seed it is, its picks, and its held-out candidates.

Read from report.json, picks/ and scores/; nothing is scored again. Settings are read as they stand in the report, so
that runs of older versions can be compared too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prm_ray import arithmetic
from prm_ray.core.metrics import first_error_hit
from prm_ray.core.steps import split_steps
from prm_ray.errors import UserError
from prm_ray.objectstore import location
from prm_ray.parquetfiles import read_parquet
from prm_ray.stages.stepcheck import take_differences
from prm_ray.tables import FOLDERS, StageFolder

ABOUT_FILE = "variant.json"
"""What an experiment leaves in the folder of a run: name, label, group with its heading, and seed of its method."""
_COLUMNS = ["prompt_id", "split", "sample_index", "problem", "text", "answer", "correct", "error", "step_rewards"]


@dataclass(frozen=True)
class Candidates:
    """N candidates to one held-out problem with their rewards."""

    sample_index_N: NDArray[np.int64]
    lengths_N: NDArray[np.int64]
    """Tokens of each response."""
    correct_N: NDArray[np.bool_]
    judged_N: NDArray[np.bool_]
    rewards_N: NDArray[np.float64]
    """By the run's headline aggregation."""
    answers: list[str | None]
    step_hits: float
    """Wrong responses whose lowest step reward (of a head: whose largest fall) is on their first wrong step, where the
    truth of a step is known."""
    step_chances: float
    """How many would be by a step taken at random."""
    num_step_checks: int


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    name: str
    """Name of its method: runs of one name and different seeds are pooled."""
    label: str
    group: str
    heading: str
    """What people read above the methods of the group."""
    seed: int
    config: dict[str, Any]
    report: dict[str, Any]
    accuracy: dict[tuple[str, int], dict[str, float]]
    """(way of picking, N) -> prompt_id -> share of random sets of N candidates whose pick is right."""
    candidates: dict[str, Candidates]
    """prompt_id -> its candidates; every problem of picks/."""

    @property
    def aggregation(self) -> str:
        return self.report["aggregation"]

    @property
    def reward(self) -> str:
        return reward_of(self.config)


def read_run(folder: str | Path, name: str | None = None) -> FinishedRun:
    """Read one run; `name` over the one it has. Raises `UserError` if it is not finished."""
    path = location(folder)
    if not path.is_dir():
        raise UserError(f"run folder {str(folder)!r} does not exist")
    if not any((path / name).exists() for name in FOLDERS.values()):
        raise UserError(f"{str(folder)!r} is no run folder: it has none of the stages' folders, such as scores/")
    for stage in ("score", "rerank", "evaluate"):
        StageFolder(path, stage).manifest()
    report = json.loads((StageFolder(path, "evaluate").path / "report.json").read_text(encoding="utf-8"))
    config = report["config"]
    about = _about(path, config) | ({} if name is None else {"name": name, "label": name})
    accuracy: dict[tuple[str, int], dict[str, float]] = {}
    for row in StageFolder(path, "rerank").rows(["prompt_id", "method", "n", "accuracy"]):
        accuracy.setdefault((row["method"], row["n"]), {})[row["prompt_id"]] = row["accuracy"]
    candidates = _read_candidates(path, config, report["aggregation"])
    return FinishedRun(path, **about, config=config, report=report, accuracy=accuracy, candidates=candidates)


def reward_of(config: dict[str, Any]) -> str:
    """As `RunConfig.reward`, also of versions that had log-ratios alone."""
    return config["score"].get("style") or config["train"].get("reward", "log_ratio")


def _about(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    seed = config["train"].get("seed")
    seed = config["run"]["seed"] if seed is None else seed
    if (path / ABOUT_FILE).is_file():
        about = json.loads((path / ABOUT_FILE).read_text(encoding="utf-8"))
        heading = about.get("heading", about["group"])
        return {key: about[key] for key in ("name", "label", "group")} | {"heading": heading, "seed": seed}
    name = re.sub(r"-\d+$", "", path.name)
    return {"name": name, "label": name, "group": "runs", "heading": "Other runs", "seed": seed}


def _read_candidates(path: Path, config: dict[str, Any], aggregation: str) -> dict[str, Candidates]:
    scores, reward = StageFolder(path, "score"), f"reward_{aggregation}"
    rule = config["reference"]["step_rule"] if knows_wrong_steps(config) else None
    is_head = reward_of(config) != "log_ratio"
    by_problem: dict[str, Candidates] = {}
    for part in scores.finished_parts():
        table = read_parquet(scores.part_path(part), [*_COLUMNS, reward, "response_tokens"])
        lengths = pc.list_value_length(table["response_tokens"])
        table = table.drop_columns(["response_tokens"]).append_column("length", lengths)
        for prompt_id, rows in rows_of_test(table, reward).items():
            if is_head:
                take_differences(rows)
            by_problem[prompt_id] = _candidates(rows, reward, rule)
    return by_problem


def rows_of_test(table: pa.Table, reward: str) -> dict[str, list[dict[str, Any]]]:
    """prompt_id -> the held-out candidates that took part in picking, in the order they were sampled."""
    usable = pc.and_(pc.equal(table["split"], "test"), pc.and_(pc.is_null(table["error"]), pc.is_valid(table[reward])))
    by_problem: dict[str, list[dict[str, Any]]] = {}
    for row in table.filter(usable).to_pylist():
        if np.isfinite(row[reward]):
            by_problem.setdefault(row["prompt_id"], []).append(row)
    return {key: sorted(rows, key=lambda row: row["sample_index"]) for key, rows in by_problem.items()}


def knows_wrong_steps(config: dict[str, Any]) -> bool:
    return config["problems"]["test"] == "arithmetic" and config["import"]["source"] is None


def first_wrong_step(row: dict[str, Any], rule: str) -> int | None:
    """0-based; None where every step of an arithmetic response holds, or its steps and step rewards do not match."""
    steps = split_steps(row["text"], rule)
    if len(steps) != len(row["step_rewards"]):
        return None
    return arithmetic.first_wrong_step(steps, row["problem"])


def _candidates(rows: list[dict[str, Any]], reward: str, rule: str | None) -> Candidates:
    checks = []
    for row in rows:
        wrong = first_wrong_step(row, rule) if rule is not None and row["correct"] is False else None
        if wrong is not None:
            checks.append(first_error_hit(row["step_rewards"], wrong))
    return Candidates(
        sample_index_N=np.array([row["sample_index"] for row in rows], dtype=np.int64),
        lengths_N=np.array([row["length"] for row in rows], dtype=np.int64),
        correct_N=np.array([row["correct"] is True for row in rows]),
        judged_N=np.array([row["correct"] is not None for row in rows]),
        rewards_N=np.array([row[reward] for row in rows], dtype=np.float64),
        answers=[row["answer"] for row in rows],
        step_hits=sum(hit for hit, _ in checks),
        step_chances=sum(chance for _, chance in checks),
        num_step_checks=len(checks),
    )
