"""Maps the shards of a stage over a pool of actors with Ray Data: the one loop all table-to-table stages share.

One shard number is one block is one part file. A worker writes its part itself, whole or not at all, so a killed run
keeps what is written and starts again with the shards that are missing; only counts travel back to the driver. Of two
attempts that overlap each does what the other has not written yet.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError

from prm_ray.errors import EngineError, UserError
from prm_ray.folders import Notes
from prm_ray.runlog import Progress, log
from prm_ray.schemas import SCHEMAS
from prm_ray.stages.cluster import Wanted, check_room
from prm_ray.stages.gpus import keep_to_own_gpus
from prm_ray.tables import StageFolder, count_failures

_MAX_STARTS = 4
"""Starts of one shard within one run; a shard that ends its worker each time must not do so for ever."""
_MAX_FAILED_STARTS = 2
"""Of each worker, which may die so often while it is made and is replaced: a machine may be short of something for a
moment. Ray counts those of all together, in a row; an engine that starts nowhere ends the stage with the next one."""
_LISTED_WITHIN_SECONDS, _LOOK_AGAIN_SECONDS = 70.0, 1.0
_NO_PROGRESS = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"


@dataclass(frozen=True)
class ShardStats:
    """Counts of one written part; `tokens` is whatever the stage measures its speed in."""

    rows: int
    failed: dict[str, int] = field(default_factory=dict)
    tokens: int = 0


def map_shards(
    folder: StageFolder,
    num_shards: int,
    worker_class: type,
    worker_kwargs: dict[str, Any],
    *,
    name: str,
    num_workers: int,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    concurrency: int = 1,
    max_starts: int = _MAX_STARTS,
) -> list[ShardStats]:
    """Call `worker_class(**worker_kwargs)(shard)` for each shard in 0 .. num_shards-1 that has no part yet.

    Returns the counts of those. The worker's `__call__` takes a shard number, writes that part and returns
    `ShardStats`. It may be `async`; then up to `concurrency` shards run at the same time on one worker. A worker that
    dies is started anew and its shard redone, `max_starts` times; an exception in it ends the stage (a `UserError` as
    itself). One that fails while it is made is replaced, unless that happens again and again and none starts meanwhile.
    With `num_gpus` 0 it sees none; without, all of its machine, which it shares with whoever has been given them.
    Raises `EngineError` if RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S is set and for so long no shard ends, or if a part
    is not there in the end.
    """
    finished = set(folder.finished_parts())
    shards = [index for index in range(num_shards) if index not in finished]
    if finished:
        log.info("%s: %d of %d shards are already there", name, num_shards - len(shards), num_shards)
    if not shards:
        return []
    check_room(Wanted(name, num_cpus, num_gpus or 0))
    num_workers = min(num_workers, len(shards))
    is_async = inspect.iscoroutinefunction(worker_class.__call__)
    dataset = _dataset(shards, num_workers).map_batches(
        _AsyncShardCalls if is_async else _ShardCalls,
        fn_constructor_args=[folder, worker_class, worker_kwargs, max_starts, num_gpus == 0],
        batch_size=1,
        compute=ActorPoolStrategy(
            size=num_workers,
            max_tasks_in_flight_per_actor=concurrency,
            max_concurrent_calls_per_actor=concurrency,
        ),
        num_cpus=None if num_gpus and num_cpus == 1 else num_cpus,  # Ray gives one by itself, and warns of both
        num_gpus=num_gpus or None,
    )
    with Progress(name, num_shards, "shard", done=num_shards - len(shards)) as progress:
        stats = list(_collect(dataset, progress))
    check_all_there(folder, num_shards, name)
    return stats


def check_all_there(folder: StageFolder, num_shards: int, name: str) -> None:
    """Wait until all parts are listed: over NFS what other machines have put there is in no listing for up to a minute.

    Raises `EngineError` if one is missing that was counted as written, as in a bucket an older start may take back one
    of its own; `TakenOverError` if the folder is another one now.
    """
    start = time.monotonic()
    while gone := set(range(num_shards)) - set(folder.finished_parts()):
        if time.monotonic() - start > _LISTED_WITHIN_SECONDS:
            parts = f"{len(gone)} of {num_shards} parts"
            raise EngineError(f"{name}: {parts} were removed while it worked; run the same again")
        folder.check()  # with the folder gone, or begun anew, none will come
        time.sleep(_LOOK_AGAIN_SECONDS)


def _dataset(shards: list[int], num_workers: int) -> ray.data.Dataset:
    """One block a shard; Ray Data's own progress bars and plans are off, the driver shows ours."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file has all of it
            handler.addFilter(_is_not_said_twice)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_auto_log_stats = False
    context.max_consecutive_actor_init_deaths = _MAX_FAILED_STARTS * num_workers
    if _NO_PROGRESS not in os.environ:  # Ray's half an hour is less than a large shard, or a GPU's coming, may take
        context.execution_no_progress_timeout_s = -1
    return ray.data.from_items([{"shard": index} for index in shards], override_num_blocks=len(shards))


def _is_not_said_twice(record: logging.LogRecord) -> bool:
    """Not what announces an exception of a worker: the exception itself gets here too, and we say what it was."""
    message = record.getMessage()
    if "an actor died during initialization and will be replaced" in message:  # with a traceback of a page
        if not hasattr(record, "prm_ray_said"):  # each handler asks
            record.prm_ray_said = True
            error = record.exc_info[1] if record.exc_info else None
            log.warning("a worker did not start, and another one does in its place: %s", _last_line(error))
        return False
    if "actors died during initialization" in message:
        return False
    return not message.startswith(
        ("An exception was raised from a task of operator", "Exception occurred in user code")
    )


def _last_line(error: BaseException | None) -> str:
    """Of the traceback that Ray shows: the cause."""
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip() if lines else "no reason is known"


def _collect(dataset: ray.data.Dataset, progress: Progress) -> Iterator[ShardStats]:
    start, tokens = time.monotonic(), 0
    for row in _rows(dataset):
        if row["user_error"]:
            raise UserError(row["user_error"])
        stats = ShardStats(int(row["rows"]), json.loads(row["failed"]), int(row["tokens"]))
        tokens += stats.tokens
        figures: dict[str, Any] = {"tokens_per_s": f"{tokens / (time.monotonic() - start):.0f}"} if tokens else {}
        progress.advance(**figures)
        yield stats


def _rows(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except ExecutionTimeoutError:
        limit = os.environ.get(_NO_PROGRESS)
        raise EngineError(f"no shard ended for {limit} s ({_NO_PROGRESS}); what is finished is kept") from None


class _ShardCalls:
    """The actor's class: turns Ray Data's batch of one shard number into a call of the worker.

    A `UserError` travels as a row, because Ray Data keeps only the text of an exception's cause.
    """

    def __init__(
        self,
        folder: StageFolder,
        worker_class: type,
        worker_kwargs: dict[str, Any],
        max_starts: int,
        hides_gpus: bool,
    ):
        self._folder, self._max_starts = folder, max_starts
        self._user_error = ""
        if hides_gpus:
            keep_to_own_gpus()
        try:
            self._worker = worker_class(**worker_kwargs)
        except UserError as error:
            self._user_error = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        shard = self._begin(batch)
        if (known := self._known(shard)) is not None:
            return known
        try:
            stats = self._worker(shard)
        except UserError as error:
            return _as_batch(ShardStats(0), str(error))
        return self._end(shard, stats)

    def _begin(self, batch: dict[str, np.ndarray]) -> int:
        """Ray Data restarts a dead actor without end, so starts are counted where it and its machine are outlived."""
        shard = int(batch["shard"][0])
        starts = self._starts(shard)
        self._folder.check()
        starts.add(f"{os.uname().nodename} {os.getpid()}")
        if len(starts.lines()) > self._max_starts:
            what = f"shard {shard} of {self._folder.stage}"
            raise EngineError(f"{what} killed its worker {self._max_starts} times: see Ray's logs")
        return shard

    def _known(self, shard: int) -> dict[str, list[Any]] | None:
        """The answer, where the worker has nothing to do."""
        if self._user_error:
            return _as_batch(ShardStats(0), self._user_error)
        if self._folder.has_part(shard):
            return self._end(shard, _stored(self._folder, shard))
        return None

    def _end(self, shard: int, stats: ShardStats) -> dict[str, list[Any]]:
        self._starts(shard).remove()
        return _as_batch(stats)

    def _starts(self, shard: int) -> Notes:
        return Notes(self._folder.shared_workspace / f".starts-{shard:05d}")


class _AsyncShardCalls(_ShardCalls):
    async def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:  # type: ignore[override]
        shard = self._begin(batch)
        if (known := self._known(shard)) is not None:
            return known
        try:
            stats = await self._worker(shard)
        except UserError as error:
            return _as_batch(ShardStats(0), str(error))
        return self._end(shard, stats)


def _stored(folder: StageFolder, shard: int) -> ShardStats:
    """Counts of a part that another attempt has written meanwhile."""
    columns = [name for name in SCHEMAS[folder.stage].names if name == "error" or name.endswith("_error")]
    rows = folder.read_part(shard, columns)
    failed = [count_failures(rows, column) for column in columns]
    return ShardStats(len(rows), {reason: count for each in failed for reason, count in each.items()})


def _as_batch(stats: ShardStats, user_error: str = "") -> dict[str, list[Any]]:
    failed = json.dumps(stats.failed)
    return {"rows": [stats.rows], "failed": [failed], "tokens": [stats.tokens], "user_error": [user_error]}
