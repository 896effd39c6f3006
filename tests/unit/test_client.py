"""The project's own client before servers that are full, starting, gone amid a request, or right to refuse."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from prm_ray import client as client_module
from prm_ray.client import AsyncClient, Client, Ranked, ResponseReward, ServerError

Answer = tuple[int, dict[str, str], Any]
"""Status, headers and body; status 0 hangs up without a reply."""
GOOD: Answer = (
    200,
    {},
    {
        "reward": {"aggregation": "mean"},
        "results": [
            {
                "index": 0,
                "rewards": {"mean": 0.5, "sum": 1.0},
                "steps": [
                    {"text": "a\n", "start": 0, "end": 2, "num_tokens": 3, "reward": 0.75, "prefix_reward": 0.75},
                    {"text": "b", "start": 2, "end": 3, "num_tokens": 2, "reward": 0.25, "prefix_reward": 1.0},
                ],
                "num_tokens": 5,
                "error": None,
            },
            {
                "index": 1,
                "rewards": None,
                "steps": None,
                "num_tokens": 0,
                "error": {"type": "too_long", "message": "600"},
            },
        ],
    },
)
FULL: Answer = (429, {"Retry-After": "1"}, {"error": {"type": "overloaded", "message": "the queue is full"}})
STARTING: Answer = (503, {}, {"error": {"type": "unavailable", "message": "no replica"}})
WRONG: Answer = (422, {}, {"error": {"type": "invalid_request", "message": "responses: Field required"}})
PROXY: Answer = (502, {}, "<html>Bad Gateway</html>")
DROPPED: Answer = (0, {}, None)


@contextmanager
def answering(*answers: Answer) -> Iterator[tuple[str, list[tuple[str, Any, str | None]]]]:
    """A server that gives one answer after the other: its URL and what it was asked (path, body, Authorization)."""
    seen: list[tuple[str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers["Authorization"]))
            status, headers, reply = answers[len(seen) - 1]
            if not status:
                return
            content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


Ask = Callable[..., Any]


def sync_ask(url: str, verb: str = "rewards", max_tries: int = 6, *args: Any, **options: Any) -> Any:
    with Client(url, "key-1", max_tries=max_tries) as client:
        return getattr(client, verb)(*(args or ("1 + 1", ["a\nb", "c"])), **options)


def async_ask(url: str, verb: str = "rewards", max_tries: int = 6, *args: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, "key-1", max_tries=max_tries) as client:
            return await getattr(client, verb)(*(args or ("1 + 1", ["a\nb", "c"])), **options)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [sync_ask, async_ask])


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.02)


@both
def test_what_is_worth_it_is_tried_again_as_late_as_the_server_asks(ask: Ask) -> None:
    with answering(STARTING, DROPPED, PROXY, FULL, GOOD) as (url, seen):
        start = time.monotonic()
        first, second = ask(url)
        assert 1.0 <= time.monotonic() - start < 20
    assert len(seen) == 5 and seen[0] == seen[4]
    assert isinstance(first, ResponseReward) and (first.reward, first.step_ends) == (0.5, [3, 5])
    assert [step.reward for step in first.steps] == [0.75, 0.25] and first.steps[1].prefix_reward == 1.0
    assert (second.reward, second.rewards, second.steps, second.error) == (None, {}, [], "too_long: 600")


@both
def test_the_callers_own_mistake_is_said_at_once(ask: Ask) -> None:
    with answering(WRONG) as (url, seen), pytest.raises(ServerError) as raised:
        ask(url)
    assert len(seen) == 1
    assert str(raised.value) == "422 invalid_request: responses: Field required"
    assert (raised.value.status, raised.value.kind) == (422, "invalid_request")


@both
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (STARTING, "503 unavailable: no replica"),
        (PROXY, "502 Bad Gateway: <html>Bad Gateway</html>"),
        (DROPPED, "RemoteProtocolError: Server disconnected without sending a response."),
    ],
)
def test_after_so_many_tries_the_last_answer_is_the_error(ask: Ask, answer: Answer, text: str) -> None:
    with answering(*[answer] * 3) as (url, seen), pytest.raises(ServerError) as raised:
        ask(url, max_tries=3)
    assert len(seen) == 3 and str(raised.value) == text


@both
def test_where_nobody_listens_it_says_so(ask: Ask) -> None:
    with answering() as (url, _):
        pass
    with pytest.raises(ServerError, match="ConnectError") as raised:
        ask(url, max_tries=2)
    assert raised.value.status == 0 and isinstance(raised.value.__cause__, httpx.TransportError)


@both
def test_texts_chats_and_token_ids_go_out_under_their_own_names(ask: Ask) -> None:
    chat = [{"role": "user", "content": "1 + 1"}]
    with answering(GOOD, GOOD, GOOD) as (url, seen):
        ask(url, "rewards", 1, "1 + 1", ["2"], aggregation="sum", truncate=True)
        ask(url, "rewards", 1, chat, ["2"], model="demo")
        ask(url, "rewards", 1, (5, 6), [(7,)])
    (path, plain, key), (_, chatted, _), (_, tokens, _) = seen
    assert (path, key) == ("/v1/rewards", "Bearer key-1")
    assert (plain["problem"], plain["aggregation"], plain["truncate"]) == ("1 + 1", "sum", True)
    assert (chatted["messages"], chatted["model"]) == (chat, "demo")
    assert (tokens["prompt_tokens"], tokens["responses"]) == ([5, 6], [[7]])


@both
def test_a_ranking_keeps_what_has_no_score(ask: Ask) -> None:
    results = [
        {"index": 1, "relevance_score": 0.5, "step_rewards": [0.5], "error": None},
        {
            "index": 0,
            "relevance_score": None,
            "step_rewards": None,
            "error": {"type": "empty_response", "message": "!"},
        },
    ]
    with answering((200, {}, {"results": results})) as (url, _):
        found = ask(url, "rerank")
    assert found == [Ranked(1, 0.5, [0.5], None), Ranked(0, None, [], "empty_response: !")]


def test_no_try_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tries is 0; it must be at least 1"):
        Client("http://127.0.0.1:1", max_tries=0)
