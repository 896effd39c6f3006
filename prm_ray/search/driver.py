"""Searches many problems at once over a pool of generators and a pool of scorers that never wait for each other.

Each problem is a coroutine that runs its strategy; what it asks goes to the pools, and it goes on with the answers. A
new problem is let in when a pool has room for more, so both stay full and memory stays bounded, whatever the number of
problems; older problems go first, so they end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from prm_ray.errors import UserError
from prm_ray.search.candidate import Candidate, Draw, Proposal, Reward
from prm_ray.search.plan import Plan
from prm_ray.search.pool import PoisonedError, Pool, WorkerDiedError
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.strategies import STRATEGIES


@dataclass(frozen=True)
class Unit:
    """One problem and how it is searched."""

    prompt_id: str
    prompt: tuple[int, ...]
    """Token ids."""
    problem: str
    strategy: str
    plan: Plan
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.prompt_id, self.strategy, self.plan.size


@dataclass(frozen=True)
class ContinueJob:
    unit: Unit
    start: Candidate
    draw: Draw


@dataclass(frozen=True)
class ScoreJob:
    unit: Unit
    candidate: Candidate


@dataclass
class Found:
    """A searched problem."""

    unit: Unit
    candidates: list[Candidate] = field(default_factory=list)
    """All that were proposed."""
    ended: list[Candidate] = field(default_factory=list)
    """Those that compete for the answer."""


Generators = Pool[ContinueJob, Proposal]
Scorers = Pool[ScoreJob, Reward]


class Driver:
    """Must be used inside one event loop, with pools that have started."""

    def __init__(
        self,
        generators: Generators,
        scorers: Scorers,
        max_waiting: int,
        find_answer: Callable[[str], str | None] = lambda text: text.strip() or None,
    ):
        """No problem is let in while so many jobs wait for a generator, or for a scorer."""
        self._generators, self._scorers, self._max_waiting = generators, scorers, max_waiting
        self._find_answer = find_answer

    async def run(self, units: Iterable[Unit], take: Callable[[Found], Awaitable[None]]) -> None:
        """Search them all; `take` gets each as it ends. Raises what makes a pool fail, or what `take` raises."""
        try:
            async with asyncio.TaskGroup() as group:
                for number, unit in enumerate(units):
                    for pool in (self._generators, self._scorers):
                        await pool.wait_for_room(self._max_waiting)
                    has_asked = asyncio.Event()
                    group.create_task(self._search(unit, number, has_asked, take))
                    await has_asked.wait()
        except BaseExceptionGroup as failures:  # the first one ended the others
            raise failures.exceptions[0] from None

    async def _search(
        self, unit: Unit, number: int, has_asked: asyncio.Event, take: Callable[[Found], Awaitable[None]]
    ) -> None:
        async def propose(start: Candidate, draw: Draw) -> Proposal:
            asked = asyncio.ensure_future(
                self._generators.submit(ContinueJob(unit, start, draw), priority=number, key=unit.key)
            )
            asyncio.get_running_loop().call_soon(has_asked.set)  # behind the other asks of this moment
            return await _or_error(asked, Proposal)

        async def score(candidate: Candidate) -> Reward:
            cost = len(candidate.tokens) - len(search.parent(candidate).tokens)
            asked = self._scorers.submit(ScoreJob(unit, candidate), cost=cost, priority=number, key=unit.key)
            return await _or_error(asked, Reward)

        search = ProblemSearch(propose, score, self._find_answer, unit.seed)
        try:
            ended = await STRATEGIES[unit.strategy](search, unit.plan)
        finally:
            has_asked.set()
            self._generators.forget(unit.key)
            self._scorers.forget(unit.key)
        await take(Found(unit, search.candidates, ended))


Answer = TypeVar("Answer", Proposal, Reward)


async def _or_error(asked: Awaitable[Answer], kind: type[Answer]) -> Answer:
    """A job that fails is a candidate with a reason; what the user has to mend, and a pool's end, are raised."""
    try:
        return await asked
    except PoisonedError as error:
        return kind(error=f"worker_died: {error}")
    except (UserError, WorkerDiedError):
        raise
    except Exception as error:  # whatever an engine raises for one request: the others go on
        reason = str(error).strip().splitlines() or [""]
        return kind(error=f"{type(error).__name__}: {reason[-1][:300]}")
