"""Stand-ins for the engines of a search that sleep as long as the real ones would compute, on a clock that jumps."""

from __future__ import annotations

import asyncio
import random

from prm_ray.search.candidate import Proposal, Reward
from prm_ray.search.driver import ContinueJob, Driver, Found, ScoreJob, Unit
from prm_ray.search.plan import Plan
from prm_ray.search.pool import Pool, WorkerDiedError


class Mortal:
    """A worker that can be killed: what it holds is lost, and it can be started anew."""

    def __init__(self, start_seconds: float):
        self._start_seconds = start_seconds
        self._death: asyncio.Future[None] | None = None

    async def start(self) -> None:
        await asyncio.sleep(self._start_seconds)
        self._death = asyncio.get_running_loop().create_future()

    async def live(self, seconds: float) -> None:
        assert self._death is not None, "it was asked before it was started"
        sleep = asyncio.ensure_future(asyncio.sleep(seconds))
        await asyncio.wait([sleep, self._death], return_when=asyncio.FIRST_COMPLETED)
        if self._death.done():
            sleep.cancel()
            raise WorkerDiedError

    async def stop(self) -> None:
        if self._death is not None and not self._death.done():
            self._death.set_result(None)


class SleepingGenerator(Mortal):
    """Each response takes its own time: exponential, so that a few take many times as long as most."""

    def __init__(self, mean_seconds: float, start_seconds: float = 5.0):
        super().__init__(start_seconds)
        self._mean = mean_seconds

    async def run(self, job: ContinueJob) -> Proposal:
        rng = random.Random(job.draw.seed)
        await self.live(rng.expovariate(1 / self._mean))
        digit = rng.randrange(10)
        ends = job.draw.whole or len(job.start.tokens) == 3
        return Proposal((digit,), f"{job.start.text}{digit}", "stop" if ends else None, num_sampled=1)


class SleepingScorer(Mortal):
    """Takes the same time for each candidate, and likes large digits."""

    def __init__(self, seconds: float, start_seconds: float = 5.0):
        super().__init__(start_seconds)
        self._seconds = seconds

    async def run(self, job: ScoreJob) -> Reward:
        await self.live(self._seconds)
        rewards = tuple(float(token) for token in job.candidate.tokens)
        return Reward(rewards, min(rewards))


class SleepingSearch:
    """A driver over so many sleeping workers of both kinds."""

    def __init__(self, num_generators: int, num_scorers: int, generator_seconds: float, scorer_seconds: float):
        self.generators: list[SleepingGenerator] = []
        self.scorers: list[SleepingScorer] = []
        self.found: list[Found] = []

        def generator() -> SleepingGenerator:
            self.generators.append(SleepingGenerator(generator_seconds))
            return self.generators[-1]

        def scorer() -> SleepingScorer:
            self.scorers.append(SleepingScorer(scorer_seconds))
            return self.scorers[-1]

        self.generator_pool: Pool = Pool("generators", generator, num_generators, room=4, enough=4)
        self.scorer_pool: Pool = Pool("scorers", scorer, num_scorers, room=1)

    async def run(self, units: list[Unit]) -> float:
        """Seconds from the moment that all workers were up."""
        await asyncio.gather(self.generator_pool.start(), self.scorer_pool.start())
        start = asyncio.get_running_loop().time()
        driver = Driver(self.generator_pool, self.scorer_pool, max_waiting=4 * len(self.generators))
        await driver.run(units, self._take)
        seconds = asyncio.get_running_loop().time() - start
        await asyncio.gather(self.generator_pool.close(), self.scorer_pool.close())
        return seconds

    async def _take(self, found: Found) -> None:
        self.found.append(found)


def units(count: int, strategy: str = "best_of_n", size: int = 16) -> list[Unit]:
    return [Unit(f"problem {n}", (1, 2), "?", strategy, Plan(size), seed=n) for n in range(count)]
