"""A pool of equal workers that many ask at once: one bounded room a worker, one queue in front of them all.

Jobs go to a worker the moment it has room, older problems first, so no worker waits for another and none is stuffed
while others idle. A worker that dies is started anew and what it held is given to others. Nothing here knows Ray: a
worker is anything that can be awaited, so the same code runs over actors, over sleeping stand-ins, and on any clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from prm_ray.runlog import log
from prm_ray.search.gathering import Gathering
from prm_ray.search.usage import Usage

Job = TypeVar("Job")
Result = TypeVar("Result")
JobIn = TypeVar("JobIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

MAX_DEATHS = 4
"""Workers that may die with a job before it is taken to be the reason."""
_MAX_STARTS = 3
"""Times in a row that a worker may fail to start."""


class WorkerDiedError(Exception):
    """The worker is gone, with all that it held."""


class PoisonedError(Exception):
    """Every worker that took this job died."""


class Worker(Protocol[JobIn, ResultOut]):
    async def run(self, job: JobIn) -> ResultOut:
        """Several at a time. Raises `WorkerDiedError` when the worker dies; other errors are the job's own."""
        ...

    async def start(self) -> None:
        """Start, or start anew after a death; returns when it can run jobs."""
        ...

    async def stop(self) -> None: ...


@dataclass(order=True)
class _Waiting(Generic[Job, Result]):
    priority: int
    number: int
    job: Job = field(compare=False)
    cost: int = field(compare=False)
    key: Hashable = field(compare=False)
    future: asyncio.Future[Result] = field(compare=False)
    deaths: int = field(default=0, compare=False)


@dataclass(eq=False)
class _Seat(Generic[Job, Result]):
    worker: Worker[Job, Result]
    held: int = 0
    num_jobs: int = 0
    is_up: bool = False
    is_leaving: bool = False
    life: int = 0
    """Counts its starts: news of an earlier life's death may come late."""


class Pool(Generic[Job, Result]):
    """Workers behind one queue; must be used inside one event loop.

    A job has a cost, e.g. its tokens; a worker holds jobs of at most `room` together, a single larger one included.
    `enough` is what it has to hold to work at full speed, for the figures of `usage`. `gathering` may hold jobs back.
    """

    def __init__(
        self,
        name: str,
        make_worker: Callable[[], Worker[Job, Result]],
        num_workers: int,
        room: int,
        enough: int = 1,
        gathering: Gathering | None = None,
    ):
        self.name, self.room, self.enough = name, room, enough
        self.num_deaths = 0
        self._make_worker, self._gathering = make_worker, gathering
        self._seats = [_Seat[Job, Result](make_worker()) for _ in range(num_workers)]
        self._queue: list[_Waiting[Job, Result]] = []
        self._numbers = itertools.count()
        self._homes: dict[Hashable, _Seat[Job, Result]] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self.usage = Usage()

    @property
    def num_workers(self) -> int:
        return sum(not seat.is_leaving for seat in self._seats)

    @property
    def num_queued(self) -> int:
        """Jobs that no worker has room for."""
        return len(self._queue)

    async def start(self, in_turn: bool = False) -> None:
        """Returns when the first worker is up; the others join when they are. Raises what a start raises.

        `in_turn`: each starts when the one before it is up, and it returns when all are.
        """
        for seat in list(self._seats):
            start = self._spawn(self._bring_up(seat))
            if in_turn:
                await start
                if self._failure is not None:
                    raise self._failure
        while not any(seat.is_up for seat in self._seats):
            await self._change()

    async def close(self) -> None:
        """Stop all workers; what is not done is cancelled."""
        if self._gathering is not None:
            self._gathering.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._queue:
            waiting.future.cancel()
        self._queue.clear()
        await asyncio.gather(*(seat.worker.stop() for seat in self._seats), return_exceptions=True)
        self._note()

    async def submit(self, job: Job, cost: int = 1, priority: int = 0, key: Hashable = None) -> Result:
        """The job's result. Jobs of lower `priority` go first; those of one `key` to one worker while it has room.

        Raises `PoisonedError` for a job that every worker dies of, and whatever the job itself raises.
        """
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, _Waiting(priority, next(self._numbers), job, cost, key, future))
        self._dispatch()
        return await future

    def forget(self, key: Hashable) -> None:
        """No more jobs of this key will come."""
        self._homes.pop(key, None)

    async def wait_for_room(self, max_queued: int) -> None:
        """Returns when fewer than so many jobs wait."""
        while self.num_queued >= max_queued:
            await self._change()

    def add(self) -> None:
        """One worker more; it joins when it is up."""
        seat = _Seat[Job, Result](self._make_worker())
        self._seats.append(seat)
        self._spawn(self._bring_up(seat))

    async def remove(self) -> None:
        """One worker less: the one that holds least ends what it holds and stops."""
        seat = min((seat for seat in self._seats if not seat.is_leaving), key=lambda seat: (seat.is_up, seat.held))
        seat.is_leaving = True
        while seat.held and seat.is_up:
            await self._change()
        self._seats.remove(seat)
        self._homes = {key: home for key, home in self._homes.items() if home is not seat}
        await seat.worker.stop()

    def _dispatch(self) -> None:
        if self._holds_back():
            self._note()
            return
        while self._queue:
            waiting = self._queue[0]
            if waiting.future.done():  # whoever asked has gone
                heapq.heappop(self._queue)
                continue
            seat = self._seat_for(waiting)
            if seat is None:
                break
            heapq.heappop(self._queue)
            seat.held, seat.num_jobs = seat.held + waiting.cost, seat.num_jobs + 1
            self._spawn(self._run(seat, waiting))
        self._note()

    def _holds_back(self) -> bool:
        if self._gathering is None or not self._queue:
            return False
        return self._gathering.holds_back(sum(waiting.cost for waiting in self._queue), self._dispatch)

    def _seat_for(self, waiting: _Waiting[Job, Result]) -> _Seat[Job, Result] | None:
        """The job's home if it has room: what came before it is in its cache. Else the one that holds least."""
        free = [seat for seat in self._seats if seat.is_up and not seat.is_leaving and self._fits(seat, waiting.cost)]
        if not free:
            return None
        home = self._homes.get(waiting.key)
        if home in free:
            return home
        seat = min(free, key=lambda seat: seat.held)
        if waiting.key is not None:
            self._homes.setdefault(waiting.key, seat)
        return seat

    def _fits(self, seat: _Seat[Job, Result], cost: int) -> bool:
        return not seat.held or seat.held + cost <= self.room

    async def _run(self, seat: _Seat[Job, Result], waiting: _Waiting[Job, Result]) -> None:
        life = seat.life
        try:
            result = await seat.worker.run(waiting.job)
        except WorkerDiedError:
            self._died(seat, life)
            self._again(waiting)
        except Exception as error:  # the job's own: it belongs to whoever asked
            if not waiting.future.done():
                waiting.future.set_exception(error)
        else:
            if not waiting.future.done():
                waiting.future.set_result(result)
        finally:
            seat.held, seat.num_jobs = seat.held - waiting.cost, seat.num_jobs - 1
            self._dispatch()

    def _again(self, waiting: _Waiting[Job, Result]) -> None:
        waiting.deaths += 1
        if waiting.future.done():
            return
        if waiting.deaths >= MAX_DEATHS:
            waiting.future.set_exception(PoisonedError(f"{waiting.deaths} workers of the pool {self.name} died of it"))
        else:
            heapq.heappush(self._queue, waiting)  # in its old place

    def _died(self, seat: _Seat[Job, Result], life: int) -> None:
        """The first job that says so starts the worker anew."""
        if life != seat.life:
            return
        seat.is_up, seat.life = False, life + 1
        log.warning("search: one of the %s died with %d jobs, which others take up", self.name, seat.num_jobs)
        self.num_deaths += 1
        self._homes = {key: home for key, home in self._homes.items() if home is not seat}
        if not seat.is_leaving:
            self._spawn(self._bring_up(seat))

    async def _bring_up(self, seat: _Seat[Job, Result]) -> None:
        for attempt in range(_MAX_STARTS):
            try:
                await seat.worker.start()
                break
            except WorkerDiedError as error:
                self.num_deaths += 1
                log.warning(
                    "search: one of the %s died while it started, %d of %d", self.name, attempt + 1, _MAX_STARTS
                )
                if attempt == _MAX_STARTS - 1:
                    return self._give_up(seat, error)
            except Exception as error:  # a model that does not load: nobody can work, so everybody is told
                return self._fail(error)
        seat.is_up = True
        self._dispatch()

    def _give_up(self, seat: _Seat[Job, Result], error: WorkerDiedError) -> None:
        """The others go on without it; without any the pool has failed."""
        self._seats.remove(seat)
        if not self._seats:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        for waiting in self._queue:
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self._queue.clear()
        self._note()

    async def _change(self) -> None:
        """Returns when something has changed. Raises what made the pool fail."""
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _note(self) -> None:
        full = sum(min(1.0, seat.held / self.enough) for seat in self._seats)
        self.usage.note(asyncio.get_running_loop().time(), full, len(self._seats), len(self._queue))
        self._changed.set()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
