"""The table of a search: rows of searched problems, judged and written as they come, and what is there already.

A problem's rows are written together, in a part with its neighbours, at the latest seconds after it ended; so a kill
costs the problems that were open and those of the last seconds, and none is ever there twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prm_ray.answers import Judge
from prm_ray.errors import TakenOverError
from prm_ray.runlog import Progress
from prm_ray.search.candidate import ROOT, Candidate
from prm_ray.search.driver import Found
from prm_ray.search.picking import PICKS, pick
from prm_ray.tables import StageFolder, count_failures

Key = tuple[str, str, int]
"""prompt_id, strategy, size."""
_LONGEST_WAIT = 10.0
"""Seconds that searched problems wait for others to share a file with."""
_USAGE = "usage.json"


@dataclass
class Counted:
    rows: int = 0
    num_scored: int = 0
    tokens: int = 0
    failed: dict[str, int] = field(default_factory=dict)


def read_usage(folder: StageFolder) -> dict[str, Any]:
    """What `note_usage` wrote; empty if no start got that far."""
    path = folder.path / _USAGE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class SearchTable:
    """Writes search/; one writer at a time: part numbers follow each other, so who writes a number is the only one.

    An attempt behind another one takes the next number with an empty part. Had the other one, which may still run,
    written more until then, it knows of that; whatever the other one writes later finds its number taken.
    """

    def __init__(self, folder: StageFolder, problems_per_part: int):
        self.folder, self._problems_per_part = folder, problems_per_part
        self.done: set[Key] = set()
        self._next_part = 0
        self._read_done()
        if folder.has_predecessor():
            while not folder.put_part(self._next_part, []):
                self._read_done()
            self._next_part += 1
        self._problems: dict[str, dict[str, Any]] = {}
        self._waiting: list[list[dict[str, Any]]] = []
        self._since = time.monotonic()
        self._judge: Judge | None = None
        self._progress: Progress | None = None
        self._num_tokens = 0

    def _read_done(self) -> None:
        parts = self.folder.finished_parts()
        rows = (row for part in parts for row in self.folder.read_part(part, ["prompt_id", "strategy", "size"]))
        self.done = {(row["prompt_id"], row["strategy"], row["size"]) for row in rows}
        self._next_part = max(parts, default=-1) + 1

    def add_problem(self, row: dict[str, Any]) -> None:
        """What all rows of a problem share."""
        self._problems[row["prompt_id"]] = {key: row[key] for key in ("prompt_id", "problem", "gold_answer")}

    def add_failure(self, prompt_id: str, strategy: str, size: int, error: str) -> None:
        """A problem that cannot be asked is one row with its reason."""
        self._waiting.append([self._problems[prompt_id] | _failure(strategy, size, error)])

    def num_done(self, strategy: str, size: int) -> int:
        """Problems that earlier starts have searched."""
        return sum(key[1:] == (strategy, size) for key in self.done)

    def tokens_of(self, strategy: str, size: int) -> int:
        """Tokens that searches of earlier starts have sampled."""
        rows = self.folder.rows(["strategy", "size", "num_sampled"])
        return sum(row["num_sampled"] for row in rows if (row["strategy"], row["size"]) == (strategy, size))

    @asynccontextmanager
    async def writing(self, judge: Judge, progress: Progress) -> AsyncIterator[SearchTable]:
        """While it is open `take` may be called; what waits is written every few seconds, and at the end."""
        self._judge, self._progress, self._since = judge, progress, time.monotonic()
        flushing = asyncio.create_task(self._flush_now_and_then())
        try:
            yield self
        finally:  # also when the search fails: what was found is kept
            flushing.cancel()
            self.flush()

    async def take(self, found: Found) -> None:
        """Judge the responses of a searched problem; they are in the table soon."""
        rows = await asyncio.to_thread(self._rows, found)
        self._waiting.append(rows)
        if len(self._waiting) >= self._problems_per_part:
            self.flush()
        assert self._progress is not None
        self._num_tokens += sum(row["num_sampled"] for row in rows)
        seconds = time.monotonic() - self._since
        self._progress.advance(tokens_per_s=f"{self._num_tokens / seconds:.0f}")

    def note_usage(self, pools: dict[str, Any]) -> None:
        """How busy the pools were, of this start; a start that found all done leaves what was noted.

        `done_before`: searches that earlier starts did, about which these figures say nothing.
        """
        if pools:
            self.folder.write_json(_USAGE, {"done_before": len(self.done), "pools": pools})

    def count(self) -> Counted:
        counted = Counted()
        failed: Counter[str] = Counter()
        for index in self.folder.finished_parts():
            rows = self.folder.read_part(index, ["num_sampled", "value", "error", "label_error"])
            counted.rows += len(rows)
            counted.num_scored += sum(row["value"] is not None for row in rows)
            counted.tokens += sum(row["num_sampled"] for row in rows)
            failed.update(count_failures(rows, "error"))
            failed.update(count_failures(rows, "label_error"))
        counted.failed = dict(failed)
        return counted

    def _rows(self, found: Found) -> list[dict[str, Any]]:
        if not found.candidates:
            unit = found.unit
            failure = _failure(unit.strategy, unit.plan.size, "no_tokens_left: the budget of all problems was used up")
            return [self._problems[unit.prompt_id] | failure]
        picks = {how: pick(found.ended, how) for how in PICKS}
        competing = {candidate.number for candidate in found.ended}
        lengths = {candidate.number: len(candidate.tokens) for candidate in found.candidates} | {ROOT: 0}
        rows = []
        for candidate in found.candidates:
            picked_by = [how for how, picked in picks.items() if picked and picked.number == candidate.number]
            assert candidate.parent is not None
            row = {
                "candidate": candidate.number,
                "tokens": list(candidate.tokens[lengths[candidate.parent] :]),
                "competes": candidate.number in competing,
                "picked_by": picked_by,
            }
            rows.append(self._shared(found) | _own_columns(candidate) | row | self._verdict(found, candidate))
        return rows

    def _shared(self, found: Found) -> dict[str, Any]:
        unit = found.unit
        return self._problems[unit.prompt_id] | {"strategy": unit.strategy, "size": unit.plan.size}

    def _verdict(self, found: Found, candidate: Candidate) -> dict[str, Any]:
        """Of those that have ended; the others have nothing that could be judged."""
        gold = self._problems[found.unit.prompt_id]["gold_answer"]
        if not candidate.has_ended or gold is None:
            return {"correct": None, "label_error": None}
        assert self._judge is not None
        judgement = self._judge(candidate.text, gold)
        return {"correct": judgement.correct, "label_error": judgement.error}

    async def _flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_LONGEST_WAIT)
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        rows = [row for problem in self._waiting for row in problem]
        if not self.folder.put_part(self._next_part, rows):
            raise TakenOverError(f"another attempt writes {str(self.folder.path)!r}: {self.folder.attempt} ends here")
        self._next_part += 1
        self._waiting.clear()


def _failure(strategy: str, size: int, error: str) -> dict[str, Any]:
    return {"strategy": strategy, "size": size, "num_sampled": 0, "competes": False, "error": error}


def _own_columns(candidate: Candidate) -> dict[str, Any]:
    return {
        "parent": candidate.parent,
        "text": candidate.text if candidate.has_ended else None,
        "finish_reason": candidate.finish_reason,
        "num_sampled": candidate.num_sampled,
        "step_rewards": list(candidate.step_rewards) if candidate.value is not None else None,
        "step_ends": list(candidate.step_ends) if candidate.value is not None else None,
        "value": candidate.value,
        "answer": candidate.answer,
        "error": candidate.error,
    }
