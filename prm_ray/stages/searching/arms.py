"""The table of a search, read as arms: a strategy of a size, and problem by problem what came of it.

Suffixes: N responses that compete for the answer, P problems. Only numbers and answers are kept, so a table of a
million candidates is read in little memory.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prm_ray.core.metrics import pass_at_k
from prm_ray.core.selection import answered_first, best_of_n_accuracy, log_vote_weights, subsets, vote_accuracy
from prm_ray.parquetfiles import read_parquet
from prm_ray.search.candidate import ROOT
from prm_ray.tables import StageFolder, count_failures

ORACLE = "oracle"
"""Way of picking that finds a right response if there is one."""
_KEY = ["prompt_id", "strategy", "size"]
_OF_COMPETING = [*_KEY, "value", "picked_by", "answer", "correct"]
_COLUMNS = [*_OF_COMPETING, "candidate", "parent", "num_sampled", "competes", "finish_reason", "error", "label_error"]
_SUBSETS = 64
"""Random sets of n responses that a vote at n is averaged over."""
Arm = tuple[str, int]
"""Strategy and size."""


@dataclass(frozen=True)
class Searched:
    """One problem under one arm."""

    prompt_id: str
    tokens: int
    """Sampled for it, those of candidates that were dropped too."""
    num_ended: int
    right: frozenset[str]
    """Ways of picking that take a right response; where nothing can be picked, none does."""
    answers: tuple[str | None, ...]
    """[N]"""
    values_N: NDArray[np.float64]
    correct_N: NDArray[np.bool_]
    """A response that could not be judged is not right."""
    has_steps: bool
    """Some candidate continues another one."""

    @property
    def num_competing(self) -> int:
        return len(self.answers)

    def accuracy(self, how: str, n: int, seed: int) -> float:
        """Chance that the pick among n of the N responses, drawn at random, is right; 0 if there is no response."""
        n = min(n, self.num_competing)
        if n == 0:
            return 0.0
        if how == ORACLE:
            return pass_at_k(self.num_competing, int(self.correct_N.sum()), n)
        if how == "best":
            return best_of_n_accuracy(answered_first(self.values_N, self.answers), self.correct_N, n)
        log_weights_N = (
            np.zeros(self.num_competing) if how == "majority" else log_vote_weights(self.values_N, "softmax")
        )
        rng = np.random.default_rng([seed, zlib.crc32(self.prompt_id.encode()), n])
        members_KN = subsets(self.num_competing, n, _SUBSETS, rng)
        return vote_accuracy(self.answers, self.correct_N, log_weights_N, members_KN)


@dataclass
class Arms:
    """What the table holds."""

    by_arm: dict[Arm, list[Searched]]
    """Problems in the order of their ids, so that arms can be compared problem by problem."""
    num_candidates: int = 0
    not_asked: set[str] = field(default_factory=set)
    """Problems that could not be asked, by any arm; they are no wrong answers and stand in no figure."""
    failed: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    num_not_judged: int = 0


def read_arms(folder: StageFolder) -> Arms:
    """Read part by part; a problem's rows are always in one part."""
    arms = Arms(defaultdict(list))
    for index in folder.finished_parts():
        _add_part(arms, read_parquet(folder.part_path(index), _COLUMNS))
    for problems in arms.by_arm.values():
        problems.sort(key=lambda problem: problem.prompt_id)
    return arms


def _add_part(arms: Arms, table: pa.Table) -> None:
    """Sums are taken column by column: only what competes, a part of all candidates, becomes rows."""
    arms.failed.update(count_failures(table.filter(pc.is_valid(table["error"])).select(["error"]).to_pylist(), "error"))
    arms.not_asked.update(table.filter(pc.is_null(table["candidate"]))["prompt_id"].to_pylist())
    table = table.filter(pc.is_valid(table["candidate"]))
    arms.num_candidates += table.num_rows
    arms.num_not_judged += table.num_rows - table["label_error"].null_count
    competing: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in table.filter(table["competes"]).select(_OF_COMPETING).to_pylist():
        competing[tuple(row[key] for key in _KEY)].append(row)
    table = table.append_column("is_step", pc.not_equal(table["parent"], ROOT))
    sums = [("num_sampled", "sum"), ("finish_reason", "count"), ("is_step", "any")]
    for total in table.group_by(_KEY).aggregate(sums).to_pylist():
        rows = competing[tuple(total[key] for key in _KEY)]
        arms.by_arm[total["strategy"], total["size"]].append(_searched(total, rows))


def _searched(total: dict[str, Any], competing: list[dict[str, Any]]) -> Searched:
    return Searched(
        total["prompt_id"],
        tokens=total["num_sampled_sum"],
        num_ended=total["finish_reason_count"],
        right=frozenset(how for row in competing if row["correct"] is True for how in row["picked_by"] or ()),
        answers=tuple(row["answer"] for row in competing),
        values_N=np.array([row["value"] for row in competing], dtype=np.float64),
        correct_N=np.array([row["correct"] is True for row in competing], dtype=bool),
        has_steps=total["is_step_any"],
    )


class BestOfN:
    """Best-of-N at every n up to N, which its N responses tell exactly: what all else is compared with."""

    def __init__(self, problems: list[Searched], seed: int):
        self._problems, self._seed = problems, seed
        self._known: dict[tuple[str, int], NDArray[np.float64]] = {}
        self.most = max((problem.num_competing for problem in problems), default=0)
        self.tokens_P = np.array([problem.tokens for problem in problems], dtype=np.float64)
        self._place = {problem.prompt_id: place for place, problem in enumerate(problems)}

    def places(self, problems: list[Searched]) -> tuple[list[int], list[int]]:
        """Where the problems that both have are: in `problems`, and here."""
        shared = [place for place, problem in enumerate(problems) if problem.prompt_id in self._place]
        return shared, [self._place[problems[place].prompt_id] for place in shared]

    def accuracy_P(self, how: str, n: float) -> NDArray[np.float64]:
        """Of n responses; between two whole numbers on the line between their accuracies."""
        low, share = int(n), n - int(n)
        value_P = self._at(how, low)
        return value_P if not share else (1 - share) * value_P + share * self._at(how, low + 1)

    def _at(self, how: str, n: int) -> NDArray[np.float64]:
        if (how, n) not in self._known:
            self._known[how, n] = np.array([problem.accuracy(how, n, self._seed) for problem in self._problems])
        return self._known[how, n]
