"""A client of the server, sync and async, that tries again what is worth trying again.

    from prm_ray.client import Client

    with Client("http://127.0.0.1:8000") as client:
        for response in client.rewards("12 + 45 - 8", ["12 + 45 = 57\\n57 - 8 = 49\\nAnswer: 49"]):
            print(response.rewards["min"], [step.reward for step in response.steps])

Scoring changes nothing on the server, so a request may be sent again after any failure on the way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import httpx

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0
TOO_MUCH = 413
"""The status of a request that is too long: the one refusal that another problem or response need not meet."""

Problem = str | Sequence[dict[str, str]] | Sequence[int]
"""The problem's text, the messages of a chat, or a prompt's token ids."""
Response = str | Sequence[int]


class ServerError(Exception):
    """The server answered with an error, or not at all (`status` 0), also when asked again."""

    def __init__(self, status: int, kind: str, message: str):
        super().__init__(f"{status} {kind}: {message}" if status else f"{kind}: {message}")
        self.status, self.kind, self.message = status, kind, message


@dataclass(frozen=True)
class StepReward:
    text: str
    start: int
    """Characters into the response."""
    end: int
    num_tokens: int
    reward: float
    prefix_reward: float
    """Of the response up to the step's end."""


@dataclass(frozen=True)
class ResponseReward:
    """One response: its rewards, or why it has none."""

    index: int
    reward: float | None
    """By the aggregation asked for, or the model's own; None where there is an error."""
    rewards: dict[str, float]
    """Aggregation -> reward; empty where there is an error."""
    steps: list[StepReward]
    num_tokens: int
    error: str | None
    """`kind: message`."""

    @property
    def step_ends(self) -> list[int]:
        """Where the steps end, in tokens into the response."""
        return list(accumulate(step.num_tokens for step in self.steps))


@dataclass(frozen=True)
class Ranked:
    index: int
    score: float | None
    """None where there is an error."""
    step_rewards: list[float]
    error: str | None


class _Requests:
    """What both clients send and read."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float, max_tries: int):
        if max_tries < 1:
            raise ValueError(f"max_tries is {max_tries}; it must be at least 1")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._options: dict[str, Any] = {"base_url": base_url.rstrip("/"), "headers": headers, "timeout": timeout}
        self._max_tries = max_tries

    def _next_wait(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try; None = this outcome stands."""
        if attempt + 1 >= self._max_tries:
            return None
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
        if isinstance(outcome, httpx.TransportError):
            return wait
        if outcome.status_code not in _RETRIED:
            return None
        asked_for = outcome.headers.get("retry-after", "")
        return max(wait, min(_LONGEST_WAIT, float(asked_for))) if asked_for.isdigit() else wait


def _rewards_body(
    problem: Problem, responses: Sequence[Response], model: str | None, aggregation: str | None, truncate: bool
) -> dict[str, Any]:
    body = {"responses": [_plain(each) for each in responses], "model": model, "aggregation": aggregation}
    return _prompt(problem) | body | {"truncate": truncate}


def _rerank_body(
    problem: Problem, documents: Sequence[Response], model: str | None, aggregation: str | None, top_n: int | None
) -> dict[str, Any]:
    body: dict[str, Any] = {"documents": [_plain(each) for each in documents], "return_documents": False}
    return _prompt(problem) | body | {"model": model, "aggregation": aggregation, "top_n": top_n}


def _prompt(problem: Problem) -> dict[str, Any]:
    if isinstance(problem, str):
        return {"problem": problem}
    return {"prompt_tokens" if problem and isinstance(problem[0], int) else "messages": list(problem)}


def _plain(response: Response) -> str | list[int]:
    return response if isinstance(response, str) else list(response)


def _read(outcome: httpx.Response | httpx.TransportError) -> Any:
    """The body of a good reply. Raises `ServerError` for any other."""
    if isinstance(outcome, httpx.TransportError):
        raise ServerError(0, type(outcome).__name__, str(outcome) or "no connection") from outcome
    try:
        body = outcome.json()
    except ValueError:
        body = None
    if outcome.is_success and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    found = error if isinstance(error, dict) else {}
    kind = str(found.get("type", outcome.reason_phrase or "error"))
    raise ServerError(outcome.status_code, kind, str(found.get("message", outcome.text[:200])))


_STEP_KEYS = tuple(field.name for field in fields(StepReward))


def _response_rewards(body: dict[str, Any]) -> list[ResponseReward]:
    return [
        ResponseReward(
            index=item["index"],
            reward=(item["rewards"] or {}).get(body["reward"]["aggregation"]),
            rewards=item["rewards"] or {},
            steps=[StepReward(**{key: step[key] for key in _STEP_KEYS}) for step in item["steps"] or []],
            num_tokens=item["num_tokens"],
            error=_error(item),
        )
        for item in body["results"]
    ]


def _ranked(body: dict[str, Any]) -> list[Ranked]:
    return [
        Ranked(item["index"], item["relevance_score"], item["step_rewards"] or [], _error(item))
        for item in body["results"]
    ]


def _error(item: dict[str, Any]) -> str | None:
    return None if item["error"] is None else f"{item['error']['type']}: {item['error']['message']}"


class Client(_Requests):
    """`timeout` in seconds is of one try; `max_tries` of one call, with pauses as the server asks for."""

    def __init__(self, base_url: str, api_key: str | None = None, *, timeout: float = 120.0, max_tries: int = 6):
        super().__init__(base_url, api_key, timeout, max_tries)
        self._http = httpx.Client(**self._options)

    def rewards(
        self,
        problem: Problem,
        responses: Sequence[Response],
        *,
        model: str | None = None,
        aggregation: str | None = None,
        truncate: bool = False,
    ) -> list[ResponseReward]:
        """Rewards of responses to one problem, in their order. Raises `ServerError`."""
        body = _rewards_body(problem, responses, model, aggregation, truncate)
        return _response_rewards(self._post("/v1/rewards", body))

    def rerank(
        self,
        problem: Problem,
        documents: Sequence[Response],
        *,
        model: str | None = None,
        aggregation: str | None = None,
        top_n: int | None = None,
    ) -> list[Ranked]:
        """Responses to one problem, best first; those with an error come last. Raises `ServerError`."""
        return _ranked(self._post("/v1/rerank", _rerank_body(problem, documents, model, aggregation, top_n)))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        for attempt in range(self._max_tries):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.post(path, json=body)
            except httpx.TransportError as error:
                outcome = error
            wait = self._next_wait(attempt, outcome)
            if wait is None:
                return _read(outcome)
            time.sleep(wait)
        raise AssertionError("the last try ends the call")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Requests):
    """The same for asyncio; calls may run at the same time, and the server merges them."""

    def __init__(self, base_url: str, api_key: str | None = None, *, timeout: float = 120.0, max_tries: int = 6):
        super().__init__(base_url, api_key, timeout, max_tries)
        self._http = httpx.AsyncClient(**self._options)

    async def rewards(
        self,
        problem: Problem,
        responses: Sequence[Response],
        *,
        model: str | None = None,
        aggregation: str | None = None,
        truncate: bool = False,
    ) -> list[ResponseReward]:
        """As `Client.rewards`."""
        body = _rewards_body(problem, responses, model, aggregation, truncate)
        return _response_rewards(await self._post("/v1/rewards", body))

    async def rerank(
        self,
        problem: Problem,
        documents: Sequence[Response],
        *,
        model: str | None = None,
        aggregation: str | None = None,
        top_n: int | None = None,
    ) -> list[Ranked]:
        """As `Client.rerank`."""
        return _ranked(await self._post("/v1/rerank", _rerank_body(problem, documents, model, aggregation, top_n)))

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        for attempt in range(self._max_tries):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.post(path, json=body)
            except httpx.TransportError as error:
                outcome = error
            wait = self._next_wait(attempt, outcome)
            if wait is None:
                return _read(outcome)
            await asyncio.sleep(wait)
        raise AssertionError("the last try ends the call")

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
