"""What Serve's HTTP proxy says where the application says nothing: an answer like the server's own.

By itself it answers 404 before the application is known, lets requests wait while the application's first replica
starts, and answers 500 where the replica that held a request died, 503 where no more may wait for one, and 408 after
`request_timeout_s`: all of it in plain text.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prm_ray.scoring.asks import Refusal
from prm_ray.serve.bodies import error_body

_FIRST_SIGN_SECONDS = 2.0
"""So long a request waits for an application that has not answered anything yet."""
_OF_THE_PROXY = "/-/"
"""What Serve's proxy answers itself."""
_TIMED_OUT = 408
_OWN_STATUSES = frozenset({404, _TIMED_OUT, 429, 503})
"""Of what it answers in plain text in the application's place."""
_UNAVAILABLE = Refusal(503, "unavailable", "nobody is free to answer at this moment; try again", 2)
_LATE = Refusal(504, "timeout", "not answered in time; send fewer responses, or try again later")
"""As the application says of itself: 408 is of a body that comes too slowly."""


def middlewares() -> list[Middleware]:
    """What Serve calls for its proxies: `PROXY_SETTING` of `stages/cluster.py` names it."""
    return [Middleware(AnswerAnyway)]


class _Answer:
    """What comes back for one request, if anything does."""

    def __init__(self, send: Send):
        self._send = send
        self.has_begun = self.is_over = False
        self.refusal = _UNAVAILABLE
        """What to say if nothing comes."""
        self.sign = asyncio.Event()
        """The application is there: it has begun this answer, or given another."""

    async def pass_on(self, message: Message) -> None:
        starts = message["type"] == "http.response.start"
        if starts and _is_the_proxys_own(message):
            self.refusal = _LATE if message["status"] == _TIMED_OUT else _UNAVAILABLE
        elif starts and not self.is_over:
            self.has_begun = True
            if message["status"] < 500:  # Serve's proxy has 500 and more for a replica that did not start
                self.sign.set()
        if self.has_begun and not self.is_over:
            await self._send(message)


class AnswerAnyway:
    """Puts a refusal in the place of no answer and of the proxy's own, which unlike the application's is plain text."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._is_there = False
        """The application has answered this process: from then on a request may wait, for its replicas are replaced
        without losing any."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_THE_PROXY):
            return await self._app(scope, receive, send)
        answer = _Answer(send)
        if self._is_there:
            await self._app(scope, receive, answer.pass_on)
        else:
            await self._unless_nobody_is_there(answer, scope, receive)
        if not answer.has_begun:
            await _reply(answer.refusal)(scope, receive, send)

    async def _unless_nobody_is_there(self, answer: _Answer, scope: Scope, receive: Receive) -> None:
        """Ends it if the application gives no sign of life in time. A request may take long, so it is asked for one."""
        task = asyncio.ensure_future(self._app(scope, receive, answer.pass_on))
        signs = asyncio.ensure_future(answer.sign.wait())
        probe = asyncio.ensure_future(self._probe(scope, answer.sign))
        try:
            await asyncio.wait((task, signs), timeout=_FIRST_SIGN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            self._is_there = self._is_there or answer.sign.is_set()
            if task.done() or self._is_there:
                await task
        finally:  # also when the client has left
            answer.is_over = True
            for each in (task, signs, probe):
                each.cancel()
            await asyncio.wait((task, signs, probe), timeout=_FIRST_SIGN_SECONDS)

    async def _probe(self, scope: Scope, sign: asyncio.Event) -> None:
        received = False

        async def nothing() -> Message:
            nonlocal received
            if received:  # who asks again waits for the client to leave
                await asyncio.Event().wait()
            received = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def look(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                sign.set()

        path = scope.get("root_path", "") + "/healthz"
        asked = {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
        await self._app({**scope, **asked}, nothing, look)


def _is_the_proxys_own(start: Message) -> bool:
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] in _OWN_STATUSES and kind.startswith("text/plain")


def _reply(refusal: Refusal) -> JSONResponse:
    headers = None if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JSONResponse(error_body(refusal.kind, refusal.message), status_code=refusal.status, headers=headers)
