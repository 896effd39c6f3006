"""What Serve's proxy says before the application is there, over stand-ins for what it has inside."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from prm_ray.serve import proxy
from prm_ray.serve.proxy import AnswerAnyway


class Inner:
    """`starting`: holds every request, as Serve does for a deployment without a replica. Else each takes its time."""

    def __init__(self, starting: bool, seconds: float = 0.0):
        self.starting, self.seconds, self.num_given_up = starting, seconds, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith("/-/"):
            await PlainTextResponse("success")(scope, receive, send)
            return
        reading = asyncio.create_task(read(receive))
        try:
            while self.starting:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0 if scope["path"] == "/healthz" else self.seconds)
        except asyncio.CancelledError:
            self.num_given_up += scope["path"] != "/healthz"
            await PlainTextResponse("cancelled", 500)(scope, receive, send)  # nobody is to see it
            raise
        finally:
            reading.cancel()
        await JSONResponse({"path": scope["path"]})(scope, receive, send)


async def read(receive: Any) -> None:
    """As Serve's proxy does: until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_FIRST_SIGN_SECONDS", 1.0)


async def get(app: Any, path: str = "/v1/models") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


def test_while_the_application_starts_nobody_is_kept_waiting() -> None:
    async def ask() -> None:
        inner = Inner(starting=True)
        app = AnswerAnyway(inner)
        assert (await get(app, "/-/healthz")).text == "success"
        for number in (1, 2):
            reply = await get(app)
            assert reply.status_code == 503 and reply.json()["error"]["type"] == "unavailable"
            assert reply.headers["retry-after"] == "2" and inner.num_given_up == number
        inner.starting = False
        assert (await get(app)).json() == {"path": "/v1/models"}

    asyncio.run(ask())


def test_a_first_request_that_takes_long_is_waited_for_if_the_application_is_there() -> None:
    inner = Inner(starting=False, seconds=3.0)
    assert asyncio.run(get(AnswerAnyway(inner))).status_code == 200 and inner.num_given_up == 0


def test_once_it_has_answered_requests_wait_for_a_replica_that_is_replaced() -> None:
    async def ask() -> None:
        inner = Inner(starting=False)
        app = AnswerAnyway(inner)
        assert (await get(app)).status_code == 200
        inner.starting = True
        waiting = asyncio.create_task(get(app))
        await asyncio.sleep(2.0)
        inner.starting = False
        assert (await waiting).status_code == 200 and inner.num_given_up == 0

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("status", "expected", "kind", "again_after"),
    [
        (408, 504, "timeout", None),
        (429, 503, "unavailable", "2"),
        (503, 503, "unavailable", "2"),
        (404, 503, "unavailable", "2"),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_serve_says_in_plain_text_is_an_error_like_the_servers_own(
    status: int, expected: int, kind: str, again_after: str | None, known: bool
) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/healthz":
            await JSONResponse({}, 200 if known else 503)(scope, receive, send)
        else:
            await PlainTextResponse("Request 7 timed out after 130s.", status)(scope, receive, send)

    async def ask() -> httpx.Response:
        app = AnswerAnyway(refuse)
        await get(app, "/healthz")
        return await get(app)

    reply = asyncio.run(ask())
    assert (reply.status_code, reply.json()["error"]["type"]) == (expected, kind)
    assert reply.headers.get("retry-after") == again_after


def test_the_applications_own_errors_pass_as_they_are() -> None:
    body = {"error": {"type": "overloaded", "message": "the queue is full"}}
    reply = asyncio.run(get(AnswerAnyway(JSONResponse(body, 429, {"Retry-After": "7"}))))
    assert (reply.status_code, reply.json(), reply.headers["retry-after"]) == (429, body, "7")
