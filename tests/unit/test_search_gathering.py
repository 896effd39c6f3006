"""A pool that gathers, in virtual time: large passes while nobody waits for them, no delay once somebody does."""

import asyncio

from prm_ray.search.gathering import Gathering
from prm_ray.search.pool import Pool
from tests.virtualtime import run_in_virtual_time

ENOUGH, SECONDS, TICK = 10, 5.0, 0.25


class Passes:
    """Takes no time, and notes when each job came."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    async def start(self) -> None: ...

    async def run(self, job: int) -> int:
        self.starts.append(asyncio.get_running_loop().time())
        return job

    async def stop(self) -> None: ...


async def starts_of(arrivals: list[float], others_are_busy_until: float) -> list[float]:
    """When jobs of cost 1 that arrive at these moments begin."""
    loop, worker = asyncio.get_running_loop(), Passes()
    gathering = Gathering(ENOUGH, SECONDS, lambda: loop.time() < others_are_busy_until)
    pool: Pool[int, int] = Pool("toys", lambda: worker, 1, room=100, gathering=gathering)
    await pool.start()

    async def one(number: int, at: float) -> int:
        await asyncio.sleep(at - loop.time())
        return await pool.submit(number)

    results = await asyncio.gather(*(one(number, at) for number, at in enumerate(arrivals)))
    assert results == list(range(len(arrivals)))
    await pool.close()
    return worker.starts


def test_while_others_are_busy_a_pass_has_enough_jobs():
    arrivals = [0.3 * number for number in range(2 * ENOUGH)]
    starts = run_in_virtual_time(starts_of(arrivals, others_are_busy_until=100))
    assert sorted(set(starts)) == [arrivals[ENOUGH - 1], arrivals[2 * ENOUGH - 1]]


def test_no_job_waits_longer_than_the_limit():
    (start,) = run_in_virtual_time(starts_of([1.0], others_are_busy_until=100))
    assert 1 + SECONDS <= start <= 1 + SECONDS + TICK


def test_nobody_waits_once_the_others_have_nothing_else_to_do():
    starts = run_in_virtual_time(starts_of([1.0, 1.1, 4.0], others_are_busy_until=2))
    assert starts[0] == starts[1] and 2 <= starts[0] <= 2 + TICK
    assert starts[2] == 4 + TICK
