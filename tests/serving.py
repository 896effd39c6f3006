"""The server in this process: a tiny model behind the HTTP application, asked with httpx or over a port."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from prm_ray.scorer import Scorer
from prm_ray.scoring.asks import ModelFacts
from prm_ray.scoring.replica import Limits, Replica
from prm_ray.serve.api import make_api
from prm_ray.serve.asking import Gateway, RequestLimits
from prm_ray.serve.generator import Candidate, Generated
from prm_ray.serve.guard import Guard, GuardLimits
from prm_ray.serve.keys import KeyRing
from prm_ray.serve.local import LocalBackend
from prm_ray.serve.requestrecord import current_record
from prm_ray.serve.watching import watch

LIMITS = Limits(max_tokens=2000, max_queued_tokens=10_000, token_budget=500)
FACTS = partial(ModelFacts, reward="log_ratio", with_reference=True, aggregation="min", step_rule="newline")


def tiny_scorer(policy: str, reference: str) -> Scorer:
    return Scorer.from_pretrained(policy, reference, dtype="float32", beta=0.5, step_rule="newline")


def tiny_api(
    scorers: dict[str, Any],
    limits: Limits = LIMITS,
    gateway: Gateway | None = None,
    facts: dict[str, ModelFacts] | None = None,
    **request_limits: Any,
) -> FastAPI:
    """An application that serves each scorer under its name."""
    backend = LocalBackend(
        facts or {name: FACTS(name) for name in scorers},
        {name: Replica(scorer, limits) for name, scorer in scorers.items()},
    )
    return make_api(backend, RequestLimits(**({"max_candidates": 8, "timeout_seconds": 30} | request_limits)), gateway)


class LateGenerator:
    """Gives these texts after so many seconds, and always one less than it was asked for."""

    def __init__(self, texts: list[str], seconds: float = 0.0):
        self._texts, self._seconds = texts, seconds

    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        await asyncio.sleep(self._seconds)
        candidates = [Candidate(text, "stop") for text in self._texts[: count - 1]]
        return Generated(candidates, "generator", 5, 5, ["one was late"])


class TwoTexts:
    """A generator that notes the headers its requests would have."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        self.headers = current_record().trace_headers
        return Generated(
            [Candidate(text, "stop") for text in ("1 + 2 = 3\n3 + 4 = 7\n", "1 + 2 = 4\nAnswer: 8")], "generator", 5, 20
        )


def watched(scorer: Any, keys: KeyRing | None = None, generator: Any = None, **settings: Any) -> FastAPI:
    """An application as `Ingress` puts it together."""
    api = tiny_api({"demo": scorer}, gateway=Gateway(generator or TwoTexts(), 2, None, 600.0))
    api.add_middleware(Guard, limits=GuardLimits(100_000, 5.0), keys=keys)
    watch(api, **settings)
    return api


async def asked(api: FastAPI, *calls: Callable[[httpx.AsyncClient], Any]) -> list[httpx.Response]:
    """Replies to calls made one after the other."""
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [await call(client) for call in calls]


def post(path: str, body: Any) -> Callable[[httpx.AsyncClient], Any]:
    return lambda client: client.post(path, json=body)


def get(path: str) -> Callable[[httpx.AsyncClient], Any]:
    return lambda client: client.get(path)


PROBES = [get(path) for path in ("/healthz", "/health", "/readyz", "/metrics")]
"""What machines ask every few seconds."""


@contextmanager
def over_http(app: Callable[..., Any]) -> Iterator[str]:
    """The application at a free port of this machine; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
