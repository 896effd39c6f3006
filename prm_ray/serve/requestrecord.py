"""What is known of one request: filled in where it is handled; metrics, log and traces read it once it is answered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prm_ray.scoring.asks import Ask, Conversation, Cost, Scored

UNKNOWN_ROUTE = "unknown"


@dataclass
class Scoring:
    """One question to a model's replica. Times are Unix times in seconds."""

    model: str
    asks: Sequence[Ask | Conversation]
    start: float
    end: float = 0.0
    cost: Cost | None = None
    """None if there was no answer."""
    failures: Counter[str] = field(default_factory=Counter)
    """Kind -> responses without a reward."""

    @property
    def num_responses(self) -> int:
        return sum(len(ask.responses) for ask in self.asks)

    def answered(self, scored: Scored) -> None:
        self.cost = scored.cost
        self.failures.update(item.failure.kind for items in scored.items for item in items if item.failure)


@dataclass
class Generation:
    """The gateway's question to its generator."""

    start: float
    end: float = 0.0
    model: str = ""
    """As the generator names it."""
    num_candidates: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class RequestRecord:
    request_id: str = ""
    method: str = ""
    """One of HTTP's own, or `_OTHER`."""
    path: str = ""
    route: str = UNKNOWN_ROUTE
    """The path as it was declared, never what a client made up."""
    status: int | None = None
    error: str | None = None
    """The error body's `type`."""
    key: str | None = None
    """Name of the API key."""
    start: float = field(default_factory=time.time)
    """Unix time, seconds."""
    seconds: float = 0.0
    scorings: list[Scoring] = field(default_factory=list)
    generation: Generation | None = None
    trace_id: str | None = None
    trace_headers: dict[str, str] = field(default_factory=dict)
    """For requests to other servers on its behalf."""
    span: Any = None

    @property
    def model(self) -> str | None:
        return self.scorings[0].model if self.scorings else None

    @contextmanager
    def scoring(self, model: str, asks: Sequence[Ask | Conversation]) -> Iterator[Scoring]:
        each = Scoring(model, asks, time.time())
        self.scorings.append(each)
        try:
            yield each
        finally:
            each.end = time.time()

    @contextmanager
    def generating(self) -> Iterator[Generation]:
        self.generation = Generation(time.time())
        try:
            yield self.generation
        finally:
            self.generation.end = time.time()


_current: ContextVar[RequestRecord] = ContextVar("request_record")


def current_record() -> RequestRecord:
    """Of the request that is being handled; one that nobody reads where requests are not watched."""
    return _current.get(None) or RequestRecord()


@contextmanager
def recording(record: RequestRecord) -> Iterator[None]:
    token = _current.set(record)
    try:
        yield
    finally:
        _current.reset(token)
