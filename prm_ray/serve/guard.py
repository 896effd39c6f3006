"""What stands before the endpoints: a request id, the key, its rate, and limits on the body. Plain ASGI.

Refusals have the same body as everywhere (`bodies.error_body`); health checks and the playground's page need no key.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from prm_ray.scoring.asks import SERVER_FAILED, Refusal, RefusedError
from prm_ray.serve.bodies import error_body
from prm_ray.serve.keys import KeyRing, RateLimit
from prm_ray.serve.page import PATHS as PLAYGROUND_PATHS
from prm_ray.serve.requestrecord import current_record

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/health", "/readyz"}) | PLAYGROUND_PATHS
"""Need no key."""
_NO_REQUEST_ID = re.compile(r"[^\w.:-]", re.ASCII)
_REQUEST_ID_LIMIT = 200
_WHOLE_BODY = 10
"""Times the pause that is allowed between two pieces: a body that drips is not read for ever."""


@dataclass(frozen=True)
class GuardLimits:
    max_body_bytes: int
    body_timeout_seconds: float
    """From one piece of the body to the next; the whole of it may take `_WHOLE_BODY` times as long."""


class Traffic:
    """Requests that are being answered, and whether more are let in; must be used inside one event loop."""

    def __init__(self) -> None:
        self._num_open = 0
        self._closing = False
        self._changed = asyncio.Event()

    def enter(self) -> None:
        """Raises `RefusedError` once the server is stopping."""
        if self._closing:
            raise RefusedError(Refusal(503, "stopping", "the server is shutting down; try again", 2))
        self._num_open += 1

    def leave(self) -> None:
        self._num_open -= 1
        self._changed.set()

    async def drain(self) -> None:
        """Let nobody in any more; returns when those inside have their answers."""
        self._closing = True
        while self._num_open:
            self._changed.clear()
            await self._changed.wait()


class Guard:
    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        limits: GuardLimits,
        keys: KeyRing | None = None,
        sends_request_id: bool = True,
        traffic: Traffic | None = None,
    ):
        """`sends_request_id=False` where what stands before this adds the header to replies, as Serve's proxy does."""
        self._app, self._limits, self._keys, self._sends_request_id = app, limits, keys, sends_request_id
        self._traffic = traffic or Traffic()
        self._rates = RateLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")[:_REQUEST_ID_LIMIT]
        request_id = _NO_REQUEST_ID.sub("_", given) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = current_record().request_id = request_id
        status, inside = None, False
        body = _LimitedBody(self._limits, receive)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if body.refusal is not None and status is None:
                return  # what the application makes of a body cut short
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._sends_request_id:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            self._let_in(scope["path"], headers)
            self._traffic.enter()
            inside = True
            body.check_announced(headers)
            await self._app(scope, body.receive, send_with_id)
        except RefusedError as error:
            await _answer(error.refusal)(scope, receive, send_with_id)
        except Exception:
            if body.refusal is None:
                if status is None:
                    await _answer(SERVER_FAILED)(scope, receive, send_with_id)
                raise
        finally:
            if body.refusal is not None and status is None:
                refusal, body.refusal = body.refusal, None
                await _answer(refusal)(scope, receive, send_with_id)
            if inside:
                self._traffic.leave()

    def _let_in(self, path: str, headers: Headers) -> None:
        """Raises `RefusedError` for a request without a valid key, or for one too many with it."""
        if self._keys is None or path in OPEN_PATHS:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        key = self._keys.find(given) if given else None
        if key is None:
            raise RefusedError(
                Refusal(401, "unauthorized", "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
            )
        current_record().key = key.name
        if key.requests_per_minute is not None:
            wait = self._rates.seconds_to_wait(key.name, key.requests_per_minute, time.monotonic())
            if wait:
                message = f"the key {key.name!r} has {key.requests_per_minute} requests a minute; try again later"
                raise RefusedError(Refusal(429, "rate_limited", message, math.ceil(wait)))


class _LimitedBody:
    """The pieces of a body; one that is too large or too slow ends as if the client had left, with `refusal` set."""

    def __init__(self, limits: GuardLimits, receive: Receive):
        self._limits, self._receive = limits, receive
        self._size, self._is_whole = 0, False
        self._started: float | None = None
        self.refusal: Refusal | None = None

    def check_announced(self, headers: Headers) -> None:
        """Raises `RefusedError` for a length that is too large before any of it is read."""
        announced = headers.get("content-length", "")
        if announced.isdigit() and (len(announced) > 15 or int(announced) > self._limits.max_body_bytes):
            raise RefusedError(self._too_large())

    async def receive(self) -> Message:
        if self._is_whole:  # what follows the body is the client's leaving, which may come late
            return await self._receive()
        pause, now = self._limits.body_timeout_seconds, time.monotonic()
        self._started = now if self._started is None else self._started
        left = self._started + _WHOLE_BODY * pause - now
        try:
            async with asyncio.timeout(min(pause, left)):
                message = await self._receive()
        except TimeoutError:
            late = f"no more of the body came within {pause:g} s"
            if left < pause:
                late = f"the whole body did not come within {_WHOLE_BODY * pause:g} s"
            return self._end(Refusal(408, "body_too_slow", late))
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._size > self._limits.max_body_bytes:
                return self._end(self._too_large())
        return message

    def _end(self, refusal: Refusal) -> Message:
        self.refusal = refusal
        return {"type": "http.disconnect"}

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body has more than {self._limits.max_body_bytes:,} bytes")


def _answer(refusal: Refusal) -> JSONResponse:
    current_record().error = refusal.kind
    headers = {"Connection": "close"} if refusal.status in (408, 413) else {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(refusal.kind, refusal.message), status_code=refusal.status, headers=headers)
