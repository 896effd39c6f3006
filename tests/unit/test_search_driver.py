"""Many problems over both pools, with workers that sleep as long as engines would compute, on a clock that jumps."""

import asyncio

import pytest

from prm_ray.search.candidate import Proposal, Reward
from prm_ray.search.pool import WorkerDiedError
from tests.searchworlds import SleepingGenerator, SleepingScorer, SleepingSearch, units
from tests.virtualtime import run_in_virtual_time


def searched(num_generators: int, num_scorers: int, count: int, scorer_seconds: float = 0.49):
    """8 generators with room for 4 make 32 candidates in 4 s; 4 scorers then have to take 0.5 s each."""
    search = SleepingSearch(num_generators, num_scorers, generator_seconds=4.0, scorer_seconds=scorer_seconds)
    return search, run_in_virtual_time(search.run(units(count)))


def test_eight_generators_and_four_scorers_are_both_busy_on_uneven_lengths():
    search, _ = searched(8, 4, count=300)
    assert search.generator_pool.usage.busy > 0.9 and search.scorer_pool.usage.busy > 0.9
    assert len(search.found) == 300


def test_eight_replicas_do_more_than_seven_times_as_much_as_one():
    _, alone = searched(1, 1, count=100, scorer_seconds=0.1)
    _, together = searched(8, 8, count=800, scorer_seconds=0.1)
    assert 8 * alone / together > 7.2


def test_killed_workers_lose_nothing_and_double_nothing():
    search = SleepingSearch(8, 4, generator_seconds=4.0, scorer_seconds=0.49)

    async def killing() -> None:
        run = asyncio.ensure_future(search.run(units(100)))
        await asyncio.sleep(60)
        await search.generators[3].stop()
        await asyncio.sleep(30)
        await search.scorers[1].stop()
        await run

    run_in_virtual_time(killing())
    assert search.generator_pool.num_deaths == search.scorer_pool.num_deaths == 1
    assert sorted(each.unit.prompt_id for each in search.found) == sorted(each.prompt_id for each in units(100))
    for each in search.found:
        assert [candidate.number for candidate in each.candidates] == list(range(16))
        assert all(candidate.value is not None for candidate in each.ended) and len(each.ended) == 16


def test_results_do_not_depend_on_how_many_workers_there_are():
    values = []
    for num_workers in (1, 7):
        search, _ = searched(num_workers, num_workers, count=20)
        values.append({each.unit.prompt_id: [one.value for one in each.ended] for each in search.found})
    assert values[0] == values[1]


def test_problems_are_let_in_as_room_appears_and_older_ones_end_first():
    search = SleepingSearch(2, 1, generator_seconds=4.0, scorer_seconds=0.1)
    most_open = 0

    async def work() -> None:
        nonlocal most_open
        begun: set[str] = set()
        propose = SleepingGenerator.run

        async def noted(self: SleepingGenerator, job):
            nonlocal most_open
            begun.add(job.unit.prompt_id)
            most_open = max(most_open, len(begun) - len(search.found))
            return await propose(self, job)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SleepingGenerator, "run", noted)
            await search.run(units(60))

    run_in_virtual_time(work())
    assert most_open <= 4  # two generators of four candidates, problems of sixteen
    order = [int(each.unit.prompt_id.split()[1]) for each in search.found]
    assert all(abs(place - number) <= 3 for place, number in enumerate(order))


def test_slow_scorers_stop_new_problems_from_being_let_in():
    search, _ = searched(4, 1, count=60, scorer_seconds=2.0)
    waiting = max(at.queued for at in search.scorer_pool.usage.over_time())
    assert waiting <= 64  # of 960: the limit of both queues, one problem, and what the generators hold


def test_failures_are_candidates_with_reasons_and_never_win(monkeypatch: pytest.MonkeyPatch):
    propose, score = SleepingGenerator.run, SleepingScorer.run

    async def sometimes(self, job):
        found = await propose(self, job)
        kind = job.draw.seed % 4
        if kind == 1:
            raise RuntimeError("the engine refused\nthis request")
        return Proposal() if kind == 2 else found

    async def not_a_number(self, job):
        found = await score(self, job)
        return Reward(found.step_rewards, float("nan")) if job.candidate.number % 5 == 0 else found

    monkeypatch.setattr(SleepingGenerator, "run", sometimes)
    monkeypatch.setattr(SleepingScorer, "run", not_a_number)
    search, _ = searched(2, 2, count=30)
    errors = {one.error for each in search.found for one in each.candidates if one.error}
    assert errors == {
        "RuntimeError: this request",
        "empty_response: the generator gave no token",
        "no_reward: the reward is nan",
    }
    assert all(one.error is None for each in search.found for one in each.ended)
    assert all(len(each.candidates) == 16 for each in search.found)


def test_a_pool_that_cannot_go_on_ends_the_search_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    search = SleepingSearch(1, 1, generator_seconds=1.0, scorer_seconds=0.1)

    async def killing() -> None:
        run = asyncio.ensure_future(search.run(units(20)))
        await asyncio.sleep(20)

        async def no_start(self) -> None:
            raise WorkerDiedError("it does not start any more")

        monkeypatch.setattr(SleepingGenerator, "start", no_start)
        await search.generators[0].stop()
        await run

    with pytest.raises(WorkerDiedError, match="does not start"):
        run_in_virtual_time(killing())
