"""Jobs of many clients -> batches of so many tokens, each cut at the moment the model is free.

One asyncio loop owns the queue; one thread runs the model. While a batch runs, jobs gather; the next batch takes the
oldest of them that fit. So an idle server answers at once, and a busy one fills its batches by itself: no waiting time
is configured. Only behind a batch, where those who were answered often ask again, is a small share of its time waited
while the next is not full. A job whose caller has gone is dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from prm_ray.errors import with_causes

Job = TypeVar("Job")
Result = TypeVar("Result")

_SMOOTHING = 0.2
"""Weight of the newest batch in the measured rate."""
_LINGERING = 0.03
"""Share of a batch's time; without it the first who asks again is computed alone, and all others after it."""
_LONGEST_LINGERING = 0.1
"""Seconds."""


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


@dataclass(frozen=True)
class Size:
    """Tokens of a job; the first `prompt_tokens` of them are computed once for all jobs of one `prompt` in a batch."""

    num_tokens: int
    prompt_tokens: int = 0
    prompt: Hashable = None


@dataclass
class _Waiting(Generic[Job, Result]):
    job: Job
    size: Size
    since: float
    future: asyncio.Future[tuple[Result, Timing]]


class _Batch(Generic[Job, Result]):
    def __init__(self, *waiting: _Waiting[Job, Result]):
        self.waiting: list[_Waiting[Job, Result]] = []
        self.num_tokens = 0
        self._prompts: set[Hashable] = set()
        for each in waiting:
            self.add(each)

    def new_tokens(self, size: Size) -> int:
        """What a job of that size would add."""
        return size.num_tokens - (size.prompt_tokens if size.prompt in self._prompts else 0)

    def add(self, waiting: _Waiting[Job, Result]) -> None:
        self.num_tokens += self.new_tokens(waiting.size)
        self._prompts.add(waiting.size.prompt)
        self.waiting.append(waiting)


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
        return sum(each.size.num_tokens for each in self._queue if not each.future.done())

    @property
    def is_alive(self) -> bool:
        return not self._loop.done()

    async def submit(self, jobs: Sequence[Job], sizes: Sequence[Size]) -> list[tuple[Result, Timing] | BaseException]:
        """Results of jobs of these sizes, or what `work` raises for one of them alone.

        Raises `QueueFullError` or `ClosedError` for all of them, before any costs something.
        """
        if self._closing or not self.is_alive:
            raise ClosedError
        num_tokens = sum(size.num_tokens for size in sizes)
        if (queued := self.queued_tokens) and queued + num_tokens > self._max_queued_tokens:
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
            if batch.waiting:
                start = time.monotonic()
                await self._run_batch(batch)
                await self._linger(time.monotonic() - start)
            elif self._closing:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    async def _linger(self, seconds: float) -> None:
        """Behind a batch that took so long."""
        end = time.monotonic() + min(_LINGERING * seconds, _LONGEST_LINGERING)
        while not (self._closing or self._is_full()) and (left := end - time.monotonic()) > 0:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _cut(self) -> _Batch[Job, Result]:
        """The oldest jobs that somebody still waits for, up to the budget."""
        batch = _Batch[Job, Result]()
        while self._queue:
            first = self._queue[0]
            if not first.future.done():
                if batch.waiting and batch.num_tokens + batch.new_tokens(first.size) > self._token_budget:
                    break
                batch.add(first)
            self._queue.popleft()
        return batch

    def _is_full(self) -> bool:
        """Whether what waits already fills a batch."""
        batch = _Batch[Job, Result]()
        for each in self._queue:
            if not each.future.done():
                batch.add(each)
                if batch.num_tokens >= self._token_budget:
                    return True
        return False

    async def _run_batch(self, batch: _Batch[Job, Result]) -> None:
        start = time.monotonic()
        waiting = batch.waiting
        failure: Exception | None = None
        try:
            results = await self._in_thread([each.job for each in waiting])
        except Exception as error:  # the batcher must outlive whatever a model raises
            failure = _without_tensors(error)
        if failure is not None:
            await self._run_alone(waiting, failure)
            return
        seconds = time.monotonic() - start
        self._measure(sum(each.size.num_tokens for each in waiting), seconds)
        self._num_batches += 1
        for each, result in zip(waiting, results, strict=True):
            if not each.future.done():
                timing = Timing(start - each.since, seconds, self._num_batches, len(waiting), batch.num_tokens)
                each.future.set_result((result, timing))

    async def _run_alone(self, waiting: list[_Waiting[Job, Result]], error: Exception) -> None:
        """A job that fails must not fail those that happened to be beside it."""
        if len(waiting) > 1:
            for each in waiting:
                if not each.future.done():
                    await self._run_batch(_Batch(each))
        elif not waiting[0].future.done():
            waiting[0].future.set_exception(error)

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


def _without_tensors(error: Exception) -> Exception:
    """The error as it can be told and logged, but without what was in the frames of its traceback.

    Of a pass that a GPU had no memory for that is all it had computed, and the jobs are about to be tried again there.
    """
    for each in with_causes(error):
        traceback.clear_frames(each.__traceback__)
    return error
