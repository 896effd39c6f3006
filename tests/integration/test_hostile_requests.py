"""Requests that nobody sends by mistake, over real HTTP: each gets its 4xx, soon, and the server goes on."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from prm_ray.serve.keys import KeyRing, new_key
from tests.serving import over_http, tiny_scorer, watched

GOOD = {"problem": "1 + 2", "responses": ["3"]}
MIB = 2**20


@pytest.fixture(scope="module")
def url(tiny_model: str, other_tiny_model: str) -> Iterator[str]:
    with over_http(watched(tiny_scorer(tiny_model, other_tiny_model))) as url:
        yield url


@pytest.fixture(autouse=True)
def answers_soon_and_goes_on(url: str) -> Iterator[None]:
    start, memory = time.monotonic(), psutil.Process().memory_info().rss
    yield
    assert time.monotonic() - start < 120
    assert psutil.Process().memory_info().rss - memory < 300 * MIB
    assert httpx.post(f"{url}/v1/rewards", json=GOOD, timeout=30).status_code == 200


def body(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"x" * (50 * MIB), 413, "the body has more than"),
        (body(responses=["3"] * 10_000), 413, "10000 responses, at most 8 are allowed"),
        (body(responses=["3 " * 20_000]), 413, "tokens"),
        (b'{"problem": ' + b"[" * 40_000, 400, "recursion limit exceeded"),
        (b'{"problem": "1 + 2", "responses": ["3"], "truncate": NaN}', 400, "not valid JSON"),
        (b'{"problem": "\\ud800", "responses": ["3"]}', 400, "hex escape"),
        (b'{"problem": "\xff\xfe", "responses": ["3"]}', 400, "not valid JSON"),
        (b'{"prompt_tokens": [1' + b"0" * 5000 + b'], "responses": ["3"]}', 400, "not valid JSON"),
        (body(problem=None, prompt_tokens=[10**9]), 422, "1000000000"),
        (body(responses=[[10**9]]), 200, "1000000000"),
        (body(responses=[[-1]]), 422, "responses.0"),
        (body(responses=[[True]]), 422, "responses.0"),
        (body(responses=["\ufffd" * 15_000]), 413, "tokens"),
        (body(responses={"0": "3"}), 422, "responses: Input should be a valid list"),
        (body(model="../../etc/passwd"), 404, "is not served"),
        (body(model="x" * 10_000), 422, "model"),
        (body(model=["demo"]), 422, "model"),
        (body(evil=1), 422, "evil: unknown key"),
        (b"", 422, "required"),
        (b"[]", 422, "valid dictionary"),
    ],
)
def test_a_hostile_body_is_refused_by_name(url: str, content: bytes, status: int, said: str) -> None:
    headers = {"Content-Type": "application/json"}
    reply = httpx.post(f"{url}/v1/rewards", content=content, headers=headers, timeout=30)
    assert (reply.status_code, said in reply.text) == (status, True), reply.text[:500]
    assert "Traceback" not in reply.text and len(reply.text) < 2000


def test_another_content_type_is_not_read_as_json(url: str) -> None:
    for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x"):
        reply = httpx.post(f"{url}/v1/rewards", content=body(), headers={"Content-Type": kind}, timeout=120)
        assert reply.status_code == 415 and reply.json()["error"]["type"] == "unsupported_media_type", kind
        assert reply.json()["error"]["message"] == f"Content-Type must be application/json, not {kind!r}"
    missing = httpx.post(f"{url}/v1/rewards", content=body(), timeout=120)
    assert missing.status_code == 415 and "Content-Type must be application/json" in missing.text
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    other = httpx.post(f"{url}/v1/rewards", content=body(), headers=headers, timeout=120)
    assert other.status_code == 200


def test_a_body_without_a_length_is_cut_off_at_the_limit(url: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * MIB

    try:
        reply = httpx.post(
            f"{url}/v1/rewards", content=pieces(), headers={"Content-Type": "application/json"}, timeout=120
        )
        assert reply.status_code == 413
    except httpx.TransportError:
        pass  # the server has answered and closed while we were still writing


def test_a_body_that_drips_is_given_up(url: str) -> None:
    """The limit of this server is 5 s between two pieces."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"POST /v1/rewards HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b'Content-Length: 100\r\n\r\n{"problem"')
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_paths_and_methods_that_are_not_there(url: str) -> None:
    for path in ("/../../etc/passwd", "/playground/../../secrets", "/playground/..%2f..%2fpage.py", "/v1/%00"):
        assert httpx.get(url + path, timeout=120).status_code == 404, path
    assert httpx.delete(f"{url}/v1/rewards", timeout=120).status_code == 405


def test_without_a_key_a_hostile_body_is_not_even_read(tmp_path: Path, tiny_model: str, other_tiny_model: str) -> None:
    key, line = new_key("tests")
    (tmp_path / "keys").write_text(line + "\n")
    api = watched(tiny_scorer(tiny_model, other_tiny_model), KeyRing(tmp_path / "keys"))
    with over_http(api) as url:
        refused = httpx.post(f"{url}/v1/rewards", content=b'{"problem": ' + b"[" * 40_000, timeout=120)
        assert refused.status_code == 401 and key not in refused.text
        assert httpx.get(f"{url}/metrics", timeout=120).status_code == 401
