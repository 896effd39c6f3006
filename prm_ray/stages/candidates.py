"""Read scores/ problem by problem: the test candidates that take part in reranking, without their tokens.

A candidate takes part if it exists and has a reward. One that could not be judged takes part too (a reranker may pick
it) and counts as not right; the report says how many there were.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prm_ray.config import RunConfig
from prm_ray.core.rewards import AGGREGATIONS, aggregate, step_rewards
from prm_ray.core.selection import answered_first
from prm_ray.errors import UserError
from prm_ray.parquetfiles import read_parquet
from prm_ray.tables import StageFolder, count_failures, in_words

REWARDS = tuple(f"prm_{how}" for how in AGGREGATIONS)
"""Best-of-N by the PRM, a method an aggregation."""
REFERENCE = ("ref_logprob_mean", "ref_logprob_sum")
"""Best-of-N by the untrained reference's log-prob, the mean or the sum over tokens: it costs no training."""


def counterparts(config: RunConfig) -> tuple[str, ...]:
    """Best-of-N by the same trained model with the reference left out where the rewards have it, or put in where they
    do not (arXiv 2412.01981 Table 5), a method an aggregation; none for a head, which has no reference."""
    if config.reward != "log_ratio":
        return ()
    whose = "prm_without_reference" if config.score.with_reference else "prm_with_reference"
    return tuple(f"{whose}_{how}" for how in config.rerank.aggregations)


@dataclass(frozen=True)
class Candidates:
    """N candidates to one problem, in the order they were sampled."""

    prompt_id: str
    sample_index_N: NDArray[np.int64]
    answers: list[str | None]
    correct_N: NDArray[np.bool_]
    judged_N: NDArray[np.bool_]
    rewards: dict[str, NDArray[np.float64]]
    """One reward a candidate for each of `REWARDS`, `REFERENCE` and both kinds of `counterparts`."""

    def __len__(self) -> int:
        return len(self.answers)

    def pick_by(self, name: str) -> NDArray[np.float64]:
        return answered_first(self.rewards[name], self.answers)


@dataclass
class Survey:
    """What scores/ holds of the test split."""

    num_rows: int = 0
    num_unjudged: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """Rows that take no part, per reason."""
    num_candidates: dict[str, int] = field(default_factory=dict)
    """prompt_id -> candidates that take part; may be 0."""
    parts: list[int] = field(default_factory=list)
    """Parts with test rows."""

    @property
    def most_candidates(self) -> int:
        return max(self.num_candidates.values(), default=0)


def survey(folder: StageFolder) -> Survey:
    """Count over all parts. Raises `UserError` if there is nothing to rerank or a problem is split over parts."""
    found = Survey()
    failed: Counter[str] = Counter()
    columns = ["prompt_id", "split", "error", "correct", *(f"reward_{how}" for how in AGGREGATIONS)]
    for part in folder.finished_parts():
        rows = _test_rows(folder, part, columns).to_pylist()
        counts: Counter[str] = Counter({row["prompt_id"]: 0 for row in rows})
        for row in rows:
            row["error"] = _why_not(row)
            counts[row["prompt_id"]] += row["error"] is None
            found.num_unjudged += row["error"] is None and row["correct"] is None
        if split_up := counts.keys() & found.num_candidates.keys():
            raise UserError(
                f"problem {min(split_up)} is in part {part} of {str(folder.path)!r} and in an earlier part; "
                "all candidates of a problem must be in one part"
            )
        found.num_candidates |= counts
        found.num_rows += len(rows)
        failed.update(count_failures(rows, "error"))
        if rows:
            found.parts.append(part)
    found.failed = dict(failed)
    if not found.most_candidates:
        raise UserError(
            f"{str(folder.path)!r} has no scored candidate of the test split "
            f"({found.num_rows} rows, failed: {in_words(found.failed)})"
        )
    return found


def read_problems(folder: StageFolder, part: int) -> list[Candidates]:
    """The test problems of one part that have candidates, in the order they stand there."""
    columns = ["prompt_id", "split", "sample_index", "answer", "correct", "error", "step_ends"]
    columns += ["ref_logprobs", "policy_logprobs", *(f"reward_{how}" for how in AGGREGATIONS)]
    by_problem: dict[str, list[dict[str, Any]]] = {}
    for row in _test_rows(folder, part, columns).to_pylist():
        if _why_not(row) is None:
            by_problem.setdefault(row["prompt_id"], []).append(row)
    return [_candidates(prompt_id, rows) for prompt_id, rows in by_problem.items()]


def read_texts(folder: StageFolder, part: int, prompt_ids: set[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """prompt_id -> rows with text, tokens and steps of the candidates that take part; None = of every test problem."""
    columns = ["prompt_id", "split", "sample_index", "problem", "gold_answer", "text", "response_tokens", "step_ends"]
    columns += [
        "step_rewards",
        "ref_logprobs",
        "answer",
        "correct",
        "error",
        *(f"reward_{how}" for how in AGGREGATIONS),
    ]
    table = _test_rows(folder, part, columns)
    if prompt_ids is not None:
        table = table.filter(pc.is_in(table.column("prompt_id"), value_set=pa.array(sorted(prompt_ids), pa.string())))
    by_problem: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        if _why_not(row) is None:
            by_problem.setdefault(row["prompt_id"], []).append(row)
    return {key: sorted(rows, key=lambda row: row["sample_index"]) for key, rows in by_problem.items()}


def _candidates(prompt_id: str, rows: list[dict[str, Any]]) -> Candidates:
    rows = sorted(rows, key=lambda row: row["sample_index"])
    rewards = [{f"prm_{how}": row[f"reward_{how}"] for how in AGGREGATIONS} | _baselines(row) for row in rows]
    return Candidates(
        prompt_id=prompt_id,
        sample_index_N=np.array([row["sample_index"] for row in rows], dtype=np.int64),
        answers=[row["answer"] for row in rows],
        correct_N=np.array([row["correct"] is True for row in rows]),
        judged_N=np.array([row["correct"] is not None for row in rows]),
        rewards={name: np.array([each[name] for each in rewards], dtype=np.float64) for name in rewards[0]},
    )


def _baselines(row: dict[str, Any]) -> dict[str, float]:
    reference_T = np.array(row["ref_logprobs"])
    figures = {"ref_logprob_sum": float(reference_T.sum()), "ref_logprob_mean": float(reference_T.mean())}
    if row["policy_logprobs"] is None:
        return figures
    policy_T = np.array(row["policy_logprobs"])
    kinds = {"prm_without_reference": policy_T, "prm_with_reference": policy_T - reference_T}
    for whose, values_T in kinds.items():
        rewards_S = step_rewards(values_T.tolist(), row["step_ends"])
        figures |= {f"{whose}_{how}": aggregate(rewards_S, how, len(values_T)) for how in AGGREGATIONS}
    return figures


def _test_rows(folder: StageFolder, part: int, columns: list[str]) -> pa.Table:
    table = read_parquet(folder.part_path(part), columns)
    return table.filter(pc.equal(table.column("split"), "test"))


def _why_not(row: dict[str, Any]) -> str | None:
    """Why a candidate takes no part; None = it does."""
    if row["error"] is not None:
        return row["error"]
    rewards = [row[f"reward_{how}"] for how in AGGREGATIONS]
    if any(reward is None for reward in rewards):
        return "no reward"
    return None if np.isfinite(rewards).all() else "reward is not a finite number"
