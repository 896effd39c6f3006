"""rerank: scores/ -> picks/. For every test problem, method and N: how often the pick of N random candidates is right.

Best-of-N and the oracle are exact averages over all subsets. Votes are averaged over all subsets if there are few, else
over `rerank.num_subsamples` seeded random ones, the same for every vote. A problem with fewer than N candidates uses
all it has, so that every N is measured on the same problems.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from prm_ray.config import RunConfig
from prm_ray.core.metrics import pass_at_k
from prm_ray.core.selection import (
    best_of_n,
    best_of_n_accuracy,
    log_vote_weights,
    subsets,
    vote_accuracy,
    vote_picks,
)
from prm_ray.errors import UserError
from prm_ray.runlog import Progress
from prm_ray.settings import RerankSection
from prm_ray.stages.candidates import REFERENCE, Candidates, counterparts, read_problems, survey
from prm_ray.stages.result import StageResult
from prm_ray.tables import StageFolder


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    """Write picks/, a part for each part of scores/. Parts that are there already are kept."""
    scores = StageFolder(config.run.dir, "score")
    found = survey(scores)
    sizes = used_sizes(config.rerank, found.most_candidates)
    finished = set(folder.finished_parts())
    with Progress("rerank", total=len(found.parts), unit="part", done=len(finished)) as progress:
        for part in found.parts:
            if part in finished:
                continue
            rows: list[dict[str, Any]] = []
            for problem in read_problems(scores, part):
                for n in sizes:
                    rows += pick_rows(problem, n, config)
            folder.write_part(part, rows)
            progress.advance()
    counts = found.num_candidates.values()
    return StageResult(
        rows_in=found.num_rows,
        rows_out=sum(1 for _ in folder.rows(["n"])),
        failed=found.failed,
        details={
            "problems": len(found.num_candidates),
            "problems_without_candidates": sum(count == 0 for count in counts),
            "problems_with_fewer_candidates": {n: sum(0 < count < n for count in counts) for n in sizes},
            "candidates_that_could_not_be_judged": found.num_unjudged,
        },
    )


def used_sizes(section: RerankSection, most_candidates: int) -> list[int]:
    """The sizes there are enough candidates for. Raises `UserError` if none is left."""
    sizes = [n for n in section.sizes if n <= most_candidates]
    if not sizes:
        raise UserError(
            f"rerank.sizes {section.sizes} are all above the {most_candidates} candidates a problem has; "
            "lower one of them or sample more responses"
        )
    return sizes


def pick_rows(problem: Candidates, size: int, config: RunConfig) -> list[dict[str, Any]]:
    """Rows of picks/ for one problem and N, a row a method. The pick itself is named where N = all candidates."""
    n = min(size, len(problem))
    rows = []
    for method, accuracy, pick in _methods(problem, n, config):
        row = {"prompt_id": problem.prompt_id, "method": method, "n": size, "accuracy": accuracy}
        if n == len(problem) and pick is not None:
            row["sample_index"] = int(problem.sample_index_N[pick])
            row["answer"] = problem.answers[pick]
            row["correct"] = bool(problem.correct_N[pick]) if problem.judged_N[pick] else None
        rows.append(row)
    return rows


def _methods(problem: Candidates, n: int, config: RunConfig) -> Iterator[tuple[str, float, int | None]]:
    """(method, accuracy, pick among all candidates) for each method."""
    correct_N, section = problem.correct_N, config.rerank
    for method in (*(f"prm_{how}" for how in section.aggregations), *counterparts(config), *REFERENCE):
        rewards_N = problem.pick_by(method)
        yield method, best_of_n_accuracy(rewards_N, correct_N, n), best_of_n(rewards_N)
    rng = np.random.default_rng([config.run.seed, zlib.crc32(problem.prompt_id.encode()), n])
    members_KN = subsets(len(problem), n, section.num_subsamples, rng)
    all_1N = np.ones((1, len(problem)), dtype=bool)
    votes = {"majority": np.zeros(len(problem))}
    for how in section.aggregations:
        votes[f"weighted_{how}"] = log_vote_weights(problem.rewards[f"prm_{how}"], section.vote_weight)
    for method, log_weights_N in votes.items():
        accuracy = vote_accuracy(problem.answers, correct_N, log_weights_N, members_KN)
        yield method, accuracy, int(vote_picks(problem.answers, log_weights_N, all_1N)[0])
    oracle = pass_at_k(len(problem), int(correct_N.sum()), n)
    yield "oracle", oracle, int(np.argmax(correct_N)) if correct_N.any() else None
