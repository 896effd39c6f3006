"""The batcher alone: what is merged, refused, dropped and survived. Work is held until the test lets it go."""

import asyncio
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable

import pytest

from prm_ray.scoring.batcher import Batcher, ClosedError, QueueFullError, Size, Timing


class Work:
    """Doubles numbers; notes each batch, and waits for `go` in it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)

    def __call__(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        assert self.go.acquire(timeout=300)
        if -1 in jobs:
            raise RuntimeError("poisoned")
        return [2 * job for job in jobs]

    def release(self, times: int = 100) -> None:
        self.go.release(times)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(300):
            await test()

    asyncio.run(bounded())


async def one(batcher: Batcher[int, int], job: int, num_tokens: int) -> tuple[int, Timing]:
    (found,) = await batcher.submit([job], [Size(num_tokens)])
    if isinstance(found, BaseException):
        raise found
    return found


async def started(work: Work, count: int = 1) -> None:
    while len(work.batches) < count:
        await asyncio.sleep(0.001)


def test_what_gathers_while_the_model_works_becomes_one_batch_up_to_the_budget() -> None:
    async def test() -> None:
        work = Work()
        batcher = Batcher(work, token_budget=10, max_queued_tokens=1000)
        first = asyncio.create_task(one(batcher, 1, 4))
        await started(work)
        later = [asyncio.create_task(one(batcher, job, 4)) for job in (2, 3, 4)]
        large = asyncio.create_task(one(batcher, 5, 40))
        await asyncio.sleep(0)
        work.release()
        found = await asyncio.gather(first, *later, large)
        assert [result for result, _ in found] == [2, 4, 6, 8, 10]
        assert work.batches == [[1], [2, 3], [4], [5]], "an idle model does not wait; nothing overtakes"
        timing = found[1][1]
        assert (timing.batch_jobs, timing.batch_tokens) == (2, 8) and timing.queued > 0
        await batcher.close()

    run(test)


def test_jobs_with_one_prompt_pay_for_it_once_a_batch() -> None:
    async def test() -> None:
        work = Work()
        batcher = Batcher(work, token_budget=10, max_queued_tokens=1000)
        jobs = [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "a"), (6, "a")]
        asked = [asyncio.create_task(batcher.submit([job], [Size(6, 4, prompt)])) for job, prompt in jobs]
        await asyncio.sleep(0)
        work.release()
        found = [(await each)[0] for each in asked]
        assert work.batches == [[1, 2], [3], [4, 5, 6]], "6 + 2 tokens, then 6 beside which another 6 have no room"
        assert [timing.batch_tokens for _, timing in found] == [8, 8, 6, 10, 10, 10]
        await batcher.close()

    run(test)


def test_a_full_queue_refuses_and_says_when_there_will_be_room() -> None:
    async def test() -> None:
        work = Work()
        batcher = Batcher(work, token_budget=10, max_queued_tokens=20)
        work.release(1)
        await one(batcher, 0, 5)
        running = asyncio.create_task(one(batcher, 1, 10))
        await started(work, 2)
        waiting = asyncio.create_task(one(batcher, 2, 15))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await one(batcher, 3, 6)
        assert refused.value.retry_after >= 1
        fits = asyncio.create_task(one(batcher, 4, 5))
        await asyncio.sleep(0)
        work.release()
        await asyncio.gather(running, waiting, fits)
        assert [3] not in work.batches
        await batcher.close()

    run(test)


def test_a_caller_that_goes_away_costs_nothing_and_makes_room() -> None:
    async def test() -> None:
        work = Work()
        batcher = Batcher(work, token_budget=10, max_queued_tokens=10)
        running = asyncio.create_task(one(batcher, 1, 10))
        await started(work)
        leaves = asyncio.create_task(one(batcher, 2, 10))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        assert batcher.queued_tokens == 0
        stays = asyncio.create_task(one(batcher, 3, 10))
        await asyncio.sleep(0)
        work.release()
        await asyncio.gather(running, stays)
        assert work.batches == [[1], [3]]
        await batcher.close()

    run(test)


def test_a_job_that_fails_fails_alone_and_the_batcher_goes_on() -> None:
    async def test() -> None:
        work = Work()
        batcher = Batcher(work, token_budget=100, max_queued_tokens=1000)
        first = asyncio.create_task(one(batcher, 0, 1))
        await started(work)
        tasks = [asyncio.create_task(one(batcher, job, 1)) for job in (1, -1, 2)]
        await asyncio.sleep(0)
        work.release()
        await first
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert not isinstance(good, BaseException) and good[0] == 2
        assert not isinstance(also_good, BaseException) and also_good[0] == 4
        assert isinstance(bad, RuntimeError) and batcher.is_alive
        assert (await one(batcher, 7, 1))[0] == 14
        await batcher.close()

    run(test)


class Activations:
    """What a forward pass holds; a tensor, on a machine with a GPU."""


def test_a_batch_that_fails_holds_nothing_while_its_jobs_are_tried_again() -> None:
    """Else a pass that a GPU has no memory for is in its memory still, and the jobs fail one by one too."""
    of_the_failed: list[weakref.ref[Activations]] = []
    still_there: list[bool] = []

    def compute() -> None:
        activations = Activations()
        of_the_failed.append(weakref.ref(activations))
        raise MemoryError("no room")

    def work(jobs: list[int]) -> list[int]:
        still_there.extend(each() is not None for each in of_the_failed)
        if len(jobs) > 1 or jobs == [-1]:
            try:
                compute()
            except MemoryError as error:
                raise RuntimeError("out of memory") from error
        return jobs

    async def test() -> None:
        batcher = Batcher(work, token_budget=100, max_queued_tokens=1000)
        good, bad = await batcher.submit([1, -1], [Size(1), Size(1)])
        await one(batcher, 2, 1)
        assert still_there == [False, False, False, False], "of the batch, for both jobs and the next; of -1, for that"
        assert not isinstance(good, BaseException) and good[0] == 1
        assert isinstance(bad, RuntimeError) and "no room" in "".join(traceback.format_exception(bad))
        await batcher.close()

    run(test)


def test_closing_finishes_what_was_accepted_and_takes_no_more() -> None:
    async def test() -> None:
        work = Work()
        batcher = Batcher(work, token_budget=1, max_queued_tokens=100)
        accepted = [asyncio.create_task(one(batcher, job, 1)) for job in range(4)]
        await started(work)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await one(batcher, 9, 1)
        work.release()
        await closing
        assert [(await each)[0] for each in accepted] == [0, 2, 4, 6] and not batcher.is_alive

    run(test)
