"""The pool over sleeping workers, in virtual time: busy, fair, and nothing lost or doubled when workers die."""

import asyncio
import random

import pytest

from prm_ray.search.pool import MAX_DEATHS, PoisonedError, Pool, WorkerDiedError
from tests.virtualtime import run_in_virtual_time


class Sleeper:
    """A job is so many seconds of sleep; `kill` ends whatever is running."""

    done: list[float]

    def __init__(self, done: list[float], start_seconds: float = 1.0):
        self.done, self._start_seconds = done, start_seconds
        self._end: asyncio.Future[None] | None = None
        self.num_starts = 0

    async def start(self) -> None:
        await asyncio.sleep(self._start_seconds)
        self.num_starts += 1
        self._end = asyncio.get_running_loop().create_future()

    async def run(self, seconds: float) -> float:
        assert self._end is not None
        sleep = asyncio.ensure_future(asyncio.sleep(seconds))
        await asyncio.wait([sleep, self._end], return_when=asyncio.FIRST_COMPLETED)
        if self._end.done():
            sleep.cancel()
            raise WorkerDiedError
        self.done.append(seconds)
        return seconds

    async def stop(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    kill = stop


def uneven(count: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.expovariate(1.0) + 0.001 * number for number in range(count)]


def make(num_workers: int, room: int = 1) -> tuple[Pool, list[Sleeper], list[float]]:
    workers: list[Sleeper] = []
    done: list[float] = []

    def worker() -> Sleeper:
        workers.append(Sleeper(done))
        return workers[-1]

    return Pool("toys", worker, num_workers, room), workers, done


async def timed(pool: Pool, jobs: list[float]) -> float:
    await pool.start()
    start = asyncio.get_running_loop().time()
    results = await asyncio.gather(*map(pool.submit, jobs))
    assert results == jobs
    return asyncio.get_running_loop().time() - start


def test_eight_workers_do_nearly_eight_times_as_much_as_one():
    jobs = uneven(2_000)
    alone = run_in_virtual_time(timed(make(1)[0], jobs))
    together = run_in_virtual_time(timed(make(8)[0], jobs))
    assert alone / together > 7.8


def test_jobs_of_a_worker_that_dies_are_done_by_others_and_none_is_done_twice():
    jobs = uneven(400)

    async def work() -> int:
        pool, workers, done = make(6)
        await pool.start()
        asks = asyncio.gather(*map(pool.submit, jobs))
        for victim in (0, 3, 0):
            await asyncio.sleep(9)
            await workers[victim].kill()
        assert await asks == jobs
        assert sorted(done) == sorted(jobs)
        return pool.num_deaths

    assert run_in_virtual_time(work()) == 3


def test_a_dead_worker_comes_back():
    async def work() -> list[int]:
        pool, workers, _ = make(2)
        await pool.start()
        first = asyncio.ensure_future(pool.submit(5.0))
        await asyncio.sleep(1)
        await workers[0].kill()
        await workers[1].kill()
        await first
        await asyncio.gather(*map(pool.submit, [1.0] * 4))
        return [worker.num_starts for worker in workers]

    assert sorted(run_in_virtual_time(work())) in ([1, 2], [2, 2])


def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done():
    class Fragile(Sleeper):
        async def run(self, seconds: float) -> float:
            if seconds == 13.0:
                await self.kill()
            return await super().run(seconds)

    async def work() -> list[object]:
        pool: Pool = Pool("toys", lambda: Fragile([]), 2, room=1)
        await pool.start()
        return await asyncio.gather(*map(pool.submit, [1.0, 13.0, 2.0]), return_exceptions=True)

    first, poisoned, last = run_in_virtual_time(work())
    assert (first, last) == (1.0, 2.0)
    assert isinstance(poisoned, PoisonedError) and str(MAX_DEATHS) in str(poisoned)


def test_a_worker_that_cannot_start_is_said_to_whoever_asks():
    class Broken(Sleeper):
        async def start(self) -> None:
            raise ValueError("no such model")

    async def work() -> None:
        pool: Pool = Pool("toys", lambda: Broken([]), 2, room=1)
        with pytest.raises(ValueError, match="no such model"):
            await pool.start()
        with pytest.raises(ValueError, match="no such model"):
            await pool.submit(1.0)

    run_in_virtual_time(work())


def test_older_problems_go_first_and_a_worker_never_holds_more_than_its_room():
    order: list[float] = []

    class Noting(Sleeper):
        held, most = 0, 0

        async def run(self, seconds: float) -> float:
            order.append(seconds)
            self.held += 1
            Noting.most = max(Noting.most, self.held)
            await super().run(seconds)
            self.held -= 1
            return seconds

    async def work() -> None:
        pool: Pool = Pool("toys", lambda: Noting([]), 1, room=3)
        await pool.start()
        await asyncio.gather(*(pool.submit(float(10 - n), priority=10 - n) for n in range(10)))

    run_in_virtual_time(work())
    assert order[3:] == sorted(order[3:]) and Noting.most == 3


def test_jobs_of_one_problem_go_to_the_worker_that_knows_it_but_do_not_wait_for_it():
    async def work() -> list[int]:
        pool, workers, _ = make(3, room=2)
        for worker in workers:
            worker.done = []
        await pool.start()
        await asyncio.sleep(2)
        for _ in range(4):  # one after the other: always room at home
            await pool.submit(1.0, key="problem")
        at_home = sorted(len(worker.done) for worker in workers)
        await asyncio.gather(*(pool.submit(1.0, key="problem") for _ in range(6)))
        assert at_home == [0, 0, 4]
        return sorted(len(worker.done) for worker in workers)

    assert run_in_virtual_time(work()) == [2, 2, 6]


def test_workers_can_be_added_and_taken_away_while_it_works():
    async def work() -> tuple[int, float]:
        pool, _, _ = make(2)
        await pool.start()
        asks = asyncio.gather(*map(pool.submit, [1.0] * 100))
        await asyncio.sleep(10)
        for _ in range(3):
            pool.add()
        await asyncio.sleep(5)
        await pool.remove()
        assert await asks == [1.0] * 100
        return pool.num_workers, asyncio.get_running_loop().time()

    num_workers, seconds = run_in_virtual_time(work())
    assert num_workers == 4 and seconds < 33  # two workers alone need 51


def test_whoever_goes_away_costs_nothing_more():
    async def work() -> list[float]:
        pool, _, done = make(1)
        await pool.start()
        asks = [asyncio.ensure_future(pool.submit(float(n + 1))) for n in range(5)]
        await asyncio.sleep(0)
        for ask in asks[1:4]:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        return done

    assert run_in_virtual_time(work()) == [1.0, 5.0]


def test_usage_says_how_busy_the_workers_were():
    async def work() -> Pool:
        pool, _, _ = make(2)
        await pool.start()
        await pool.submit(10.0)  # one of two works
        await asyncio.gather(pool.submit(5.0), pool.submit(5.0))
        await pool.close()
        return pool

    pool = run_in_virtual_time(work())
    assert pool.usage.full_seconds == pytest.approx(20.0, abs=0.1)
    assert pool.usage.busy == pytest.approx(20.0 / (2 * 15), abs=0.02)
    assert max(at.busy for at in pool.usage.over_time()) == pytest.approx(1.0)


def test_a_worker_that_does_not_start_any_more_is_done_without_while_others_are_up():
    class Unlucky(Sleeper):
        async def start(self) -> None:
            if self.num_starts:
                raise WorkerDiedError("out of memory")
            await super().start()

    async def work() -> tuple[list[float], int, object]:
        workers: list[Unlucky] = []
        pool: Pool = Pool("toys", lambda: workers.append(Unlucky([])) or workers[-1], 2, room=1)
        await pool.start()
        asks = asyncio.gather(*map(pool.submit, [3.0] * 6))
        await asyncio.sleep(1)
        await workers[0].kill()
        results, left = await asks, pool.num_workers
        await workers[1].kill()
        last = await asyncio.gather(pool.submit(1.0), return_exceptions=True)
        return results, left, last[0]

    results, left, last = run_in_virtual_time(work())
    assert results == [3.0] * 6 and left == 1
    assert isinstance(last, WorkerDiedError) and "out of memory" in str(last)
