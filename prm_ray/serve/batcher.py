"""Jobs of many clients -> batches of so many tokens, each cut at the moment the model is free.

One asyncio loop owns the queue; one thread runs the model. While a batch runs, jobs gather; the next batch takes the
oldest of them that fit. So an idle server answers at once, and a busy one fills its batches by itself: no waiting time
is configured. A job whose caller has gone is dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_SMOOTHING = 0.2
"""Weight of the newest batch in the measured rate."""


class QueueFullError(Exception):
    """No room for a job's tokens; `retry_after` is when there will be, in seconds."""

    def __init__(self, retry_after: int):
        super().__init__(retry_after)
        self.retry_after = retry_after


class ClosedError(Exception):
    """The batcher takes no more jobs."""


@dataclass(frozen=True)
class Timing:
    """What became of one job, in seconds and tokens."""

    queued: float
    """From submission until its batch began."""
    computed: float
    """Its whole batch."""
    batch: int
    """Its number, from 1 on."""
    batch_jobs: int
    batch_tokens: int


@dataclass
class _Waiting(Generic[Job, Result]):
    job: Job
    num_tokens: int
    since: float
    future: asyncio.Future[tuple[Result, Timing]]


class Batcher(Generic[Job, Result]):
    """Runs `work` on batches of at most `token_budget` tokens, a single larger job included; made inside a loop.

    At most `max_queued_tokens` wait; an empty queue takes a job of any size. `work` gives a result a job, in order;
    it always runs in one and the same thread, which begins with `initializer`.
    """

    def __init__(
        self,
        work: Callable[[list[Job]], Sequence[Result]],
        token_budget: int,
        max_queued_tokens: int,
        initializer: Callable[[], None] = lambda: None,
    ):
        self._work, self._token_budget, self._max_queued_tokens = work, token_budget, max_queued_tokens
        self._queue: deque[_Waiting[Job, Result]] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._tokens_per_second: float | None = None
        self._num_batches = 0
        # One thread, not a lock: a caller that goes away cancels its waiting, but never lets two passes run at once.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward", initializer=initializer)
        self._loop = asyncio.get_running_loop().create_task(self._run())

    @property
    def queued_tokens(self) -> int:
        return sum(each.num_tokens for each in self._queue if not each.future.done())

    @property
    def is_alive(self) -> bool:
        return not self._loop.done()

    async def submit(self, jobs: Sequence[Job], sizes: Sequence[int]) -> list[tuple[Result, Timing] | BaseException]:
        """Results of jobs of so many tokens each, or what `work` raises for one of them alone.

        Raises `QueueFullError` or `ClosedError` for all of them, before any costs something.
        """
        if self._closing or not self.is_alive:
            raise ClosedError
        if (queued := self.queued_tokens) and queued + sum(sizes) > self._max_queued_tokens:
            raise QueueFullError(self._seconds_for(queued))
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = [_Waiting(job, size, now, loop.create_future()) for job, size in zip(jobs, sizes, strict=True)]
        self._queue.extend(waiting)
        self._arrived.set()
        # Cancelled, `gather` cancels the futures too: then nobody waits for them, and they are not computed.
        return await asyncio.gather(*(each.future for each in waiting), return_exceptions=True)

    async def close(self) -> None:
        """Finish what was accepted, take nothing more."""
        self._closing = True
        self._arrived.set()
        await self._loop
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            batch = self._cut()
            if batch:
                await self._run_batch(batch)
            elif self._closing:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _cut(self) -> list[_Waiting[Job, Result]]:
        """The oldest jobs that somebody still waits for, up to the budget."""
        batch: list[_Waiting[Job, Result]] = []
        num_tokens = 0
        while self._queue:
            first = self._queue[0]
            if not first.future.done():
                if batch and num_tokens + first.num_tokens > self._token_budget:
                    break
                batch.append(first)
                num_tokens += first.num_tokens
            self._queue.popleft()
        return batch

    async def _run_batch(self, batch: list[_Waiting[Job, Result]]) -> None:
        start = time.monotonic()
        num_tokens = sum(each.num_tokens for each in batch)
        try:
            results = await self._in_thread([each.job for each in batch])
        except Exception as error:  # the batcher must outlive whatever a model raises
            await self._run_alone(batch, error)
            return
        seconds = time.monotonic() - start
        self._measure(num_tokens, seconds)
        self._num_batches += 1
        for each, result in zip(batch, results, strict=True):
            if not each.future.done():
                timing = Timing(start - each.since, seconds, self._num_batches, len(batch), num_tokens)
                each.future.set_result((result, timing))

    async def _run_alone(self, batch: list[_Waiting[Job, Result]], error: Exception) -> None:
        """A job that fails must not fail those that happened to be beside it."""
        if len(batch) > 1:
            for each in batch:
                if not each.future.done():
                    await self._run_batch([each])
        elif not batch[0].future.done():
            batch[0].future.set_exception(error)

    async def _in_thread(self, jobs: list[Job]) -> Sequence[Result]:
        results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, jobs)
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(results)} results came of {len(jobs)} jobs")
        return results

    def _measure(self, num_tokens: int, seconds: float) -> None:
        rate = num_tokens / max(seconds, 1e-6)
        last = self._tokens_per_second
        self._tokens_per_second = rate if last is None else last + _SMOOTHING * (rate - last)

    def _seconds_for(self, num_tokens: int) -> int:
        if self._tokens_per_second is None:
            return 1
        return max(1, math.ceil(num_tokens / self._tokens_per_second))
