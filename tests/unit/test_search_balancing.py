"""Workers move to the pool that has more to do, on a clock that jumps."""

import asyncio

from prm_ray.search.balancing import balance, ideal_first
from tests.searchworlds import SleepingSearch, units
from tests.virtualtime import run_in_virtual_time


def test_workers_are_shared_out_as_the_work_came():
    assert [ideal_first(12, *work) for work in ((8.0, 4.0), (1.0, 99.0), (99.0, 1.0), (0.0, 0.0), (3.0, 3.0))] == [
        8,
        1,
        11,
        6,
        6,
    ]


def balanced(num_generators: int, num_scorers: int, seconds: float) -> tuple[float, int, int]:
    """Generators need 4 s for each of 4 responses at a time, scorers 0.5 s: two generators keep one scorer busy."""
    search = SleepingSearch(num_generators, num_scorers, generator_seconds=4.0, scorer_seconds=0.5)

    async def work() -> float:
        balancing = asyncio.ensure_future(balance(search.generator_pool, search.scorer_pool, seconds))
        took = await search.run(units(300))
        balancing.cancel()
        return took

    took = run_in_virtual_time(work())
    assert len(search.found) == 300
    return took, search.generator_pool.num_workers, search.scorer_pool.num_workers


def test_a_wrong_split_is_mended_and_a_right_one_is_left_alone():
    as_it_was, *_ = balanced(3, 9, seconds=0)
    mended, *split = balanced(3, 9, seconds=20)
    assert split == [8, 4] and mended < 0.6 * as_it_was
    assert balanced(8, 4, seconds=20)[1:] == (8, 4)


def test_each_pool_keeps_a_worker():
    assert balanced(1, 1, seconds=5)[1:] == (1, 1)
