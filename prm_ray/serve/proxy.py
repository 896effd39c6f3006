"""What Serve's HTTP proxy says when it has nobody to ask: an answer like the server's own, which may be asked again.

By itself it answers 404 before the application is there, and 500 where the replica that held a request died.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prm_ray.serve.bodies import error_body

SETTING = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "prm_ray.serve.proxy.middlewares")
"""Environment variable of the proxy's process, and its value: Serve calls that function."""
_AGAIN_AFTER_SECONDS = "2"


def middlewares() -> list[Middleware]:
    return [Middleware(AnswerAnyway)]


class AnswerAnyway:
    """Puts 503 in the place of no answer, and of the proxy's own 404, which unlike the application's is plain text."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        answered = False

        async def pass_on(message: Message) -> None:
            nonlocal answered
            answered = answered or (message["type"] == "http.response.start" and not _is_unknown_path(message))
            if answered:
                await send(message)

        await self._app(scope, receive, pass_on)
        if not answered:
            body = error_body("unavailable", "nobody is there to answer at this moment; try again")
            reply = JSONResponse(body, status_code=503, headers={"Retry-After": _AGAIN_AFTER_SECONDS})
            await reply(scope, receive, send)


def _is_unknown_path(start: Message) -> bool:
    return start["status"] == 404 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")
