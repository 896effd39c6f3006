"""What stands before everything else: it sees each request and its reply, and tells metrics, log and traces."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from prm_ray.scoring.asks import SERVER_FAILED
from prm_ray.serve.asking import Asking
from prm_ray.serve.metrics import ServerMetrics
from prm_ray.serve.requestlog import log_request
from prm_ray.serve.requestrecord import UNKNOWN_ROUTE, RequestRecord, recording
from prm_ray.serve.tracing import Traces

log = logging.getLogger("prm_ray.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_CLIENT_LEFT = 499
"""What proxies write for a client that did not wait for its reply."""
_READY_WITHIN_SECONDS = 2


@dataclass(frozen=True)
class Watching:
    metrics: ServerMetrics
    log_requests: bool = True
    log_text: bool = False
    traces: Traces | None = None


def watch(api: FastAPI, log_requests: bool = True, log_text: bool = False, traces: Traces | None = None) -> None:
    """Add `/metrics`, and watch every request; to be called when all other middleware is there, to see its replies."""
    asking: Asking = api.state.asking
    metrics = ServerMetrics(facts.name for facts in asking.models())

    @api.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def prometheus(request: Request) -> Response:
        """Numbers of this server in the text format of Prometheus."""
        page, content_type = metrics.render(await _num_ready(asking), request.headers.get("accept", ""))
        return Response(page, headers={"Content-Type": content_type})

    api.add_middleware(Watch, watching=Watching(metrics, log_requests, log_text, traces))


async def _num_ready(asking: Asking) -> dict[str, int] | None:
    try:
        async with asyncio.timeout(_READY_WITHIN_SECONDS):
            return await asking.num_ready()
    except Exception as error:  # the other numbers matter most while the cluster is in trouble
        log.warning("the ready replicas cannot be counted: %s: %s", type(error).__name__, error)
        return None


class Watch:
    """Plain ASGI middleware. The record of a request is `current_record()` for all that handles it."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], watching: Watching):
        self._app, self._watching = app, watching
        self._paths: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        record = RequestRecord(method=method, path=scope["path"])
        start = time.perf_counter()

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        self._begin(record, scope)
        try:
            with recording(record):
                await self._app(scope, receive, send_seen)
        except asyncio.CancelledError:
            record.status, record.error = record.status or _CLIENT_LEFT, "client_left"
            raise
        except Exception:
            record.status, record.error = record.status or SERVER_FAILED.status, SERVER_FAILED.kind
            log.exception("request %s failed", record.request_id)
            raise
        finally:
            record.seconds = time.perf_counter() - start
            record.route = self._route(scope)
            self._end(record)

    def _begin(self, record: RequestRecord, scope: Scope) -> None:
        self._watching.metrics.begin()
        if self._watching.traces is not None:
            self._watching.traces.begin(record, scope)

    def _end(self, record: RequestRecord) -> None:
        watching = self._watching
        watching.metrics.end(record)
        if watching.traces is not None:
            watching.traces.end(record)
        if watching.log_requests:
            log_request(record, watching.log_text)

    def _route(self, scope: Scope) -> str:
        """As declared. A request that was refused before it was routed has it by its path."""
        declared = getattr(scope.get("route"), "path", None)
        if declared is not None:
            return declared
        if self._paths is None:
            self._paths = frozenset(route.path for route in scope["app"].routes if hasattr(route, "path"))
        return scope["path"] if scope["path"] in self._paths else UNKNOWN_ROUTE
