"""Follows a job's log to the job's end: over connections that break, and not beyond the end of the cluster itself.

Ray's client waits without limit, and nobody tells it of a head that lost power.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from prm_ray.errors import ClusterError
from prm_ray.submitting.client import asking

Answer = TypeVar("Answer")

_LOOK_AGAIN_SECONDS = 1.0
_SILENT_SECONDS = 15.0
"""How long a log may say nothing before the cluster is asked whether it is still there."""
_ANSWERS_WITHIN_SECONDS = 30.0
_LOST_SECONDS = 60.0
"""How long a cluster may not answer before it counts as lost: a head that restarts comes back sooner."""

_GO_ON = "submit the same again, and it goes on from what is finished"


class JobGoneError(ClusterError):
    """The cluster answers and has no such job any more: it is a new one, with its head where the old one's was."""


def follow(client: Any, name: str) -> Any:
    """Print a job's log as it grows until the job has ended; return the job.

    A connection that breaks is made again. Raises `ClusterError` if that does not work for a minute, and
    `JobGoneError` at once where another cluster answers.
    """
    stream = _Stream()
    while True:
        try:
            with asking(client.get_address()):
                job = asyncio.run(_end_of(client, name, stream))
        except ClusterError as error:
            _check_known(client, name)
            if time.monotonic() - stream.heard_at > _LOST_SECONDS:
                raise ClusterError(
                    f"{error}. If only the way there is broken, job {name} goes on: prm-ray logs {name} --follow. "
                    f"If the cluster lost its head, the job is over: on the next cluster {_GO_ON}"
                ) from None
        else:
            if job.status.is_terminal():
                return job
        time.sleep(_LOOK_AGAIN_SECONDS)


class _Stream:
    """Copies a log to stdout; of one that begins again, only what is new."""

    def __init__(self) -> None:
        self.num_chars = 0
        self.heard_at = time.monotonic()
        """When the cluster was there for certain."""

    async def copy(self, pieces: AsyncIterator[str]) -> None:
        position = 0
        async for piece in pieces:
            self.heard_at = time.monotonic()
            print(piece[max(0, self.num_chars - position) :], end="", flush=True)
            position += len(piece)
            self.num_chars = max(self.num_chars, position)


async def _end_of(client: Any, name: str, stream: _Stream) -> Any:
    """The job, once its log has ended. Raises `TimeoutError` if nothing comes, and no answer either."""
    copying = asyncio.ensure_future(stream.copy(client.tail_job_logs(name)))
    try:
        while not (await asyncio.wait([copying], timeout=_LOOK_AGAIN_SECONDS))[0]:
            if time.monotonic() - stream.heard_at >= _SILENT_SECONDS:
                await _answer(client.get_job_info, name)
                stream.heard_at = time.monotonic()
        await copying
    finally:
        copying.cancel()
    job = await _answer(client.get_job_info, name)
    stream.heard_at = time.monotonic()
    return job


def _check_known(client: Any, name: str) -> None:
    """Raises `JobGoneError` if the cluster answers and does not know the job."""
    jobs, address = None, client.get_address()
    with suppress(ClusterError), asking(address):
        jobs = asyncio.run(_answer(client.list_jobs))
    if jobs is not None and name not in {job.submission_id for job in jobs}:
        raise JobGoneError(f"{address} has no job {name} any more: the cluster has begun anew there; {_GO_ON}")


async def _answer(call: Callable[..., Answer], *arguments: Any) -> Answer:
    """What Ray's client returns, if it does so in time."""
    answer: Future[Answer] = Future()
    answer.set_running_or_notify_cancel()  # so that whoever waits no longer does not disturb the thread

    def work() -> None:
        try:
            answer.set_result(call(*arguments))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a daemon: at the end of the command nobody waits for it
    try:
        return await asyncio.wait_for(asyncio.wrap_future(answer), _ANSWERS_WITHIN_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"nothing within {_ANSWERS_WITHIN_SECONDS:g} s") from None
