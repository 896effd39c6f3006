"""Candidates from any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from prm_ray.scoring.asks import Refusal, RefusedError
from prm_ray.serve.requestrecord import current_record

_REQUESTS_AT_ONCE = 4
"""A request for so many candidates is cut in so many, so that a slow one does not hold the others back."""
_SMALLEST_CUT = 4
ALL_EQUAL = Refusal(
    400, "refused_by_generator", "temperature 0 makes all candidates equal; give one above 0, or best_of 1"
)


@dataclass(frozen=True)
class Candidate:
    text: str
    finish_reason: str


@dataclass
class Generated:
    candidates: list[Candidate] = field(default_factory=list)
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problems: list[str] = field(default_factory=list)
    """Why there are fewer candidates than asked for."""


class Generator(Protocol):
    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        """`count` candidates to a request body without `n`. Raises `RefusedError` if there are none at all."""
        ...


class HttpGenerator:
    """An OpenAI-compatible server at a URL, such as `http://127.0.0.1:8001/v1`."""

    def __init__(self, base_url: str, api_key: str | None = None, model: str | None = None):
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(base_url=base_url.rstrip("/"), headers=headers, timeout=None)
        self._model = model

    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        body = body | ({} if self._model is None else {"model": self._model})
        return await gather_candidates(self._ask, body, count, seconds)

    async def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            headers = current_record().trace_headers
            reply = await self._http.post("/chat/completions", json=body, headers=headers)
        except httpx.HTTPError as error:
            message = f"the generator cannot be reached ({type(error).__name__})"
            raise RefusedError(Refusal(502, "bad_generator", message, 2)) from None
        if reply.status_code in (400, 404, 413, 422):  # the client's own mistake, in the generator's words
            raise RefusedError(Refusal(400, "refused_by_generator", _message(reply)))
        if not reply.is_success:
            message = f"the generator answered {reply.status_code}: {_message(reply)}"
            raise RefusedError(Refusal(502, "bad_generator", message, 2))
        try:
            found = reply.json()
            assert isinstance(found, dict) and isinstance(found["choices"], list)
        except (ValueError, KeyError, AssertionError):
            raise RefusedError(Refusal(502, "bad_generator", "the generator's reply is no chat completion")) from None
        return found


async def gather_candidates(
    ask: Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]],
    body: dict[str, Any],
    count: int,
    seconds: float,
) -> Generated:
    """The candidates of several requests at once, as many as come within so many seconds.

    `ask` takes a request body and gives a chat completion. Raises `RefusedError` if there are no candidates at all.
    """
    tasks = [asyncio.create_task(ask(each)) for each in _cut(body, count)]
    try:
        _, late = await asyncio.wait(tasks, timeout=seconds)
    finally:  # also when the client has gone: nobody waits for the others either
        for task in tasks:
            task.cancel()
    generated = Generated()
    refusals: list[Refusal] = []
    for task in tasks:
        if task in late:
            refusals.append(Refusal(504, "generator_timeout", f"the generator took longer than {seconds:g} s", 1))
        elif isinstance(error := task.exception(), RefusedError):
            refusals.append(error.refusal)
        else:
            _add(generated, task.result())
    if not generated.candidates:
        raise RefusedError(
            refusals[0] if refusals else Refusal(502, "bad_generator", "the generator gave no candidate")
        )
    generated.problems = list(dict.fromkeys(refusal.message for refusal in refusals))
    if not refusals and len(generated.candidates) < count:
        generated.problems.append(f"the generator gave {len(generated.candidates)} of {count} candidates")
    return generated


def _cut(body: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Bodies of the requests that together ask for `count` candidates.

    With one seed for all of them their candidates would be the same. vLLM gives a request's candidates seeds that count
    up from its own: each goes on where the one before ended, as if there were only one.
    """
    number = max(1, min(_REQUESTS_AT_ONCE, count // _SMALLEST_CUT))
    size, seed = math.ceil(count / number), body.get("seed")
    return [
        body
        | {"n": min(size, count - start), "stream": False}
        | ({"seed": seed + start} if isinstance(seed, int) else {})
        for start in range(0, count, size)
    ]


def _add(generated: Generated, reply: dict[str, Any]) -> None:
    """Whatever of a reply is not as it should be counts as not there."""
    usage = reply.get("usage")
    prompt_tokens, completion_tokens = (
        count if isinstance(usage, dict) and isinstance(count := usage.get(key), int) else 0
        for key in ("prompt_tokens", "completion_tokens")
    )
    generated.model = generated.model or str(reply.get("model", ""))
    generated.prompt_tokens += prompt_tokens
    generated.completion_tokens += completion_tokens
    for choice in reply["choices"]:
        message = choice.get("message") if isinstance(choice, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if isinstance(text, str) and text.strip():
            generated.candidates.append(Candidate(text, str(choice.get("finish_reason") or "stop")))


def _message(reply: httpx.Response) -> str:
    """What a server says of its own refusal, in at most 300 letters."""
    try:
        body = reply.json()
        error = body.get("error", body)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = reply.text
    return str(text)[:300]
