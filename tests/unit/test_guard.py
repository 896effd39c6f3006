"""Keys, rates, body limits and request ids before an application that echoes its body."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from prm_ray.errors import UserError
from prm_ray.serve.guard import Guard, GuardLimits
from prm_ray.serve.keys import KeyRing, RateLimit, new_key, read_keys

LIMITS = GuardLimits(max_body_bytes=1000, body_timeout_seconds=0.2)


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.state.request_id} {len(await request.body())}")


APP = Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in ("/v1/score", "/healthz", "/")])


def ask(guard: Guard, path: str = "/v1/score", **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as client:
            return await client.post(path, **request)

    return asyncio.run(send())


@pytest.fixture
def key_file(tmp_path: Path) -> tuple[Path, str]:
    key, line = new_key("trainer")
    path = tmp_path / "keys"
    path.write_text(f"# who may\n\n{line}\n")
    return path, key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_valid_key_nobody_is_let_in(key_file: tuple[Path, str]) -> None:
    path, key = key_file
    guard = Guard(APP, LIMITS, KeyRing(path))
    assert ask(guard, headers=bearer(key)).status_code == 200
    assert ask(guard, headers={"X-API-Key": key}).status_code == 200
    for headers in ({}, bearer(key[:-1]), bearer(key + "x"), {"Authorization": key}, bearer(""), {"X-API-Key": "é"}):
        refused = ask(guard, headers={name: value.encode() for name, value in headers.items()})
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["type"] == "unauthorized" and key not in refused.text
    for open_path in ("/healthz", "/"):
        assert ask(guard, open_path).status_code == 200


class Clock:
    """In place of `time` in keys.py."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("prm_ray.serve.keys.time", found)
    return found


def test_a_key_is_revoked_and_another_let_in_while_the_server_runs(key_file: tuple[Path, str], clock: Clock) -> None:
    path, old = key_file
    ring = KeyRing(path)
    new, line = new_key("second")
    path.write_text(f"{line} 600\n")
    clock.now += 1
    assert ring.find(old) is None
    found = ring.find(new)
    assert found is not None and (found.name, found.requests_per_minute) == ("second", 600)


def spoil_all(path: Path) -> None:
    path.write_text("nonsense")


def spoil_one(path: Path) -> None:
    path.write_text(path.read_text() + "second nonsense\n")


def empty(path: Path) -> None:
    path.write_text("# nobody\n")


@pytest.mark.parametrize(
    ("change", "reason", "still_let_in"),
    [
        (empty, "holds no key.*nobody is let in", False),
        (spoil_all, "line 1 of.*nobody is let in", False),
        (spoil_one, "line 4 of.*only its other keys .1. are let in", True),
        (Path.unlink, "cannot be read: .*No such file.*nobody is let in", False),
    ],
)
def test_a_file_that_went_wrong_is_taken_at_its_word_once_nobody_can_be_writing_it(
    key_file: tuple[Path, str],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], None],
    reason: str,
    still_let_in: bool,
) -> None:
    path, key = key_file
    ring, text = KeyRing(path), path.read_text()
    change(path)
    for seconds, is_let_in in ((1, True), (3, True), (2, still_let_in), (60, still_let_in)):
        clock.now += seconds
        assert (ring.find(key) is not None) == is_let_in
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "prm_ray"]
    assert re.search(reason, warning) and str(path) in warning and key not in warning
    path.write_text(text)
    clock.now += 1
    assert ring.find(key) is not None, "it is mended"


def test_a_file_that_is_being_written_locks_nobody_out(
    key_file: tuple[Path, str], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path, key = key_file
    ring, text = KeyRing(path), path.read_text()
    for number in range(10):
        for piece in ("", text[:40], text):
            path.write_text(piece + "#" * number * len(piece))
            clock.now += 1
            assert ring.find(key) is not None
    assert len(caplog.messages) >= 10


def test_a_key_that_was_revoked_while_nobody_asked_is_refused_at_once(key_file: tuple[Path, str], clock: Clock) -> None:
    path, key = key_file
    ring = KeyRing(path)
    path.unlink()
    clock.now += 3600
    assert ring.find(key) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key; make one with prm-ray key NAME"),
        ("# nobody\n", "holds no key"),
        ("trainer secret\n", "line 1 of serve.api_keys_file '.*' must be: a name, the key's SHA-256"),
        (f"trainer {'a' * 64} 0\n", "line 1"),
    ],
)
def test_a_file_without_keys_starts_no_server(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=message):
        read_keys(tmp_path / "keys")
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")


def test_a_key_stores_no_secret(key_file: tuple[Path, str]) -> None:
    path, key = key_file
    assert key not in path.read_text() and len(key) > 40 and new_key("a")[0] != new_key("a")[0]


def test_a_key_has_its_rate(key_file: tuple[Path, str], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm_ray.serve.guard.time", clock)
    path, key = key_file
    path.write_text(path.read_text().rstrip() + " 12\n")
    guard = Guard(APP, LIMITS, KeyRing(path))
    replies = [ask(guard, headers=bearer(key)) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    assert replies[2].json()["error"]["type"] == "rate_limited" and 1 <= int(replies[2].headers["retry-after"]) <= 5


def test_a_rate_recovers_with_time_and_names_do_not_share_it() -> None:
    rates = RateLimit()
    assert [rates.seconds_to_wait("a", 60, 0.0) for _ in range(10)] == [0.0] * 10
    assert rates.seconds_to_wait("a", 60, 0.0) == pytest.approx(1.0)
    assert rates.seconds_to_wait("b", 60, 0.0) == 0.0
    assert rates.seconds_to_wait("a", 60, 1.0) == 0.0 and rates.seconds_to_wait("a", 60, 1.0) > 0


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() -> None:
    guard = Guard(APP, LIMITS)
    assert ask(guard, content=b"x" * 1000).status_code == 200

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    for request in ({"content": b"x" * 1001}, {"content": pieces()}, {"headers": {"Content-Length": "9" * 30}}):
        refused = ask(guard, **request)
        assert refused.status_code == 413 and refused.json()["error"]["type"] == "body_too_large"


def test_a_body_that_stops_coming_is_not_waited_for() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(5)
        yield b"x"

    refused = ask(Guard(APP, LIMITS), content=stuck())
    assert refused.status_code == 408 and refused.json()["error"]["type"] == "body_too_slow"


def test_a_body_that_drips_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drops() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x"
            await asyncio.sleep(0.02)

    monkeypatch.setattr("prm_ray.serve.guard._WHOLE_BODY", 0.8)  # with a pause that no busy machine makes of a drop
    guard = Guard(APP, GuardLimits(1000, 5))
    start = time.monotonic()
    refused = ask(guard, content=drops())
    assert refused.status_code == 408 and "the whole body did not come within 4 s" in refused.text
    assert time.monotonic() - start < 16


def test_every_reply_has_the_requests_id(key_file: tuple[Path, str]) -> None:
    path, key = key_file
    guard = Guard(APP, LIMITS, KeyRing(path))
    named = ask(guard, headers={**bearer(key), "X-Request-ID": "abc-1"})
    made = ask(guard, headers={"X-Request-ID": "bad id\x01"})
    assert named.headers["x-request-id"] == "abc-1" and named.text == "abc-1 0"
    assert made.status_code == 401 and made.headers["x-request-id"] == "bad_id_"
    assert len(ask(guard).headers["x-request-id"]) == 32
    behind_a_proxy = ask(Guard(APP, LIMITS, sends_request_id=False), headers={"X-Request-ID": "abc-2"})
    assert behind_a_proxy.text == "abc-2 0" and "x-request-id" not in behind_a_proxy.headers
