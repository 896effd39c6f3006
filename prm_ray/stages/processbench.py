"""processbench: does a PRM, trained or published, find the first wrong step of solutions whose steps people labelled?

In: checkpoint/ and ProcessBench's rows (arXiv 2412.06559). Out: processbench/, a row a solution with its step rewards,
report.json, report.md, and a table on stdout.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.processbench import RIGHT
from prm_ray.errors import UserError
from prm_ray.problems import hash_problem, read_rows, require_fields
from prm_ray.settings import ProcessBenchSection
from prm_ray.stages.processbench_report import make_report, write_report
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.stages.solutions import Solution, open_reader
from prm_ray.stages.threads import set_threads
from prm_ray.tables import StageFolder, count_failures


def check(config: RunConfig) -> None:
    """Raises `UserError` for rows that are missing or odd, and where no threshold could be chosen."""
    load_solutions(config.processbench, config.run.seed)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section = config.processbench
    solutions = load_solutions(section, config.run.seed)
    size = section.rows_per_shard
    shards = [solutions[start : start + size] for start in range(0, len(solutions), size)]
    map_shards(
        folder,
        len(shards),
        ProcessBenchWorker,
        {"config": config, "folder": folder, "shards": shards},
        name="processbench",
        num_workers=section.num_workers,
        num_gpus=section.gpus_per_worker,
    )
    counted = count_parts(folder, ("error",), "response_tokens")
    report = make_report(config, folder)
    table = write_report(report, folder.workspace)
    print(f"{table}\nreport: {folder.path / 'report.json'}", flush=True)
    return StageResult(len(solutions), counted.rows_out, counted.failed, counted.tokens, {"table": table})


def load_solutions(section: ProcessBenchSection, seed: int) -> list[Solution]:
    """All subsets one behind the other, solutions to one problem side by side so that they can share its tokens.

    Raises `UserError` for a source, field, step or label that is not what ProcessBench has, or if the subset that the
    threshold is chosen on lacks solutions with a wrong step, or without one.
    """
    solutions = [solution for subset in section.subsets for solution in _load_subset(section, subset, seed)]
    kinds = {solution.label == RIGHT for solution in solutions if solution.subset == section.threshold_from}
    if len(kinds) < 2:
        raise UserError(
            f"processbench.threshold_from {section.threshold_from!r} has only solutions "
            f"{'without' if True in kinds else 'with'} a wrong step; a threshold needs both: "
            "raise processbench.num_rows, or choose another subset"
        )
    return solutions


def _load_subset(section: ProcessBenchSection, subset: str, seed: int) -> list[Solution]:
    if section.source.startswith("hf:"):
        source = f"{section.source}:{subset}"
    elif Path(section.source).expanduser().is_dir():
        source = str(Path(section.source).expanduser() / f"{subset}.jsonl")
    else:
        raise UserError(
            f"processbench.source {section.source!r} must be a folder with a .jsonl file a subset, or hf:owner/name"
        )
    rows = enumerate(read_rows(source), start=1)
    solutions = [_solution(row, subset, f"row {number} of {source!r}") for number, row in rows]
    if section.num_rows is not None and section.num_rows < len(solutions):
        solutions = random.Random(f"{seed} {subset}").sample(solutions, section.num_rows)
    first_seen = {problem: number for number, problem in enumerate(dict.fromkeys(each.problem for each in solutions))}
    return sorted(solutions, key=lambda solution: first_seen[solution.problem])


def _solution(row: dict[str, Any], subset: str, where: str) -> Solution:
    require_fields(row, ("id", "problem", "steps", "label"), where)
    steps, label = row["steps"], row["label"]
    if not isinstance(row["problem"], str) or not row["problem"].strip():
        raise UserError(f"{where}: problem must be a text, not {row['problem']!r}")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise UserError(f"{where}: steps must be a list of texts")
    if type(label) is not int or not RIGHT <= label < len(steps):
        raise UserError(f"{where}: label {label!r} must be {RIGHT} or the number of one of its {len(steps)} steps")
    return Solution(subset, str(row["id"]), row["problem"], steps, label)


class ProcessBenchWorker:
    """Scores one shard after the other with one PRM."""

    def __init__(self, config: RunConfig, folder: StageFolder, shards: list[list[Solution]]):
        self._folder, self._shards, self._num_workers = folder, shards, config.processbench.num_workers
        self._reader = open_reader(config)

    def __call__(self, shard: int) -> ShardStats:
        set_threads(self._num_workers)
        solutions = self._shards[shard]
        rows = [self._row(solution) for solution in solutions]
        readable = [number for number, row in enumerate(rows) if row["error"] is None]
        self._reader.add_rewards([rows[number] for number in readable], [solutions[number] for number in readable])
        rows = self._folder.write_part(shard, rows)
        tokens = sum(len(row["response_tokens"]) for row in rows if row["error"] is None)
        return ShardStats(len(rows), count_failures(rows, "error"), tokens)

    def _row(self, solution: Solution) -> dict[str, Any]:
        """Tokens and where the given steps end in them, or the reason why there are none."""
        row = asdict(solution) | {"prompt_id": hash_problem(solution.problem), "error": None}
        del row["problem"], row["steps"]
        row["num_empty_steps"] = sum(not step.strip() for step in solution.steps)
        return row | (self._reader.encoded(solution) if solution.steps else {"error": "no_steps"})
