"""What all deployments share: where their log lines go, and how one of their replicas is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentResponse

from prm_ray.runlog import log
from prm_ray.scoring.asks import Refusal, RefusedError
from prm_ray.serve.requestlog import REQUESTS_LOG

STARTS = 3
"""Of each replica, failed in a row, at which Serve gives its deployment up for good; it counts those of all replicas
together, so a deployment of N has N times as many. A model that cannot be loaded costs two more for nothing; but an
evicted pod, a busy hub or bucket, or a GPU that does not come up must not end a server."""
_TRIES = 4
"""A replica may die with a request, and the next one may be stopping: scoring twice changes nothing."""


class _ServeLog(logging.Handler):
    """Hands records to Serve's handlers: to its log file of this replica, and from warnings on to stderr as well."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == REQUESTS_LOG:
            record.skip_context_filter = True  # Serve would put its own route and id in place of ours
        for handler in logging.getLogger("ray.serve").handlers:
            if record.levelno >= logging.WARNING or not isinstance(handler, logging.StreamHandler):
                handler.handle(record)


def log_through_serve() -> None:
    """For a replica's process."""
    log.handlers, log.propagate = [_ServeLog()], False
    log.setLevel(logging.INFO)


async def ask_replica(send: Callable[[], DeploymentResponse]) -> Any:
    """A replica's reply. Raises `RefusedError` for a refusal, or where none can answer after a few tries."""
    refusal = Refusal(503, "unavailable", "no replica with the model answers; try again", 2)
    for attempt in range(_TRIES):
        response = send()
        try:
            outcome = await response
        except asyncio.CancelledError:
            response.cancel()  # the replica would go on for nobody
            raise
        except BackPressureError:
            raise RefusedError(Refusal(429, "overloaded", "too many requests wait; try again later", 1)) from None
        except (RayActorError, DeploymentUnavailableError):
            await asyncio.sleep(0.1 * 2**attempt)
            continue
        if not isinstance(outcome, Refusal):
            return outcome
        if outcome.kind != "stopping":
            raise RefusedError(outcome)
        refusal = outcome
    raise RefusedError(refusal)
