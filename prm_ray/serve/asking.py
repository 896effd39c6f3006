"""How an endpoint asks the models: which one, within which limits, and how long it waits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request

from prm_ray.finalanswers import vote_answer
from prm_ray.scoring.asks import Ask, Backend, Conversation, ModelFacts, Options, Refusal, RefusedError, Scored
from prm_ray.serve.generator import Generated, Generator
from prm_ray.serve.requestrecord import current_record
from prm_ray.serve.steps import StepGenerator
from prm_ray.settings import PromptSection, SearchSection


@dataclass(frozen=True)
class RequestLimits:
    max_candidates: int
    """Responses of one request."""
    timeout_seconds: float


@dataclass(frozen=True)
class Gateway:
    """Where the candidates of `/v1/chat/completions` come from."""

    generator: Generator
    best_of: int
    """Candidates of a request that does not say."""
    answer_pattern: str | None
    """Regex of the final answer, by which candidates vote together."""
    timeout_seconds: float
    """After it the candidates that are there are used."""
    prompt: PromptSection = field(default_factory=PromptSection)
    """Into which the generator's problems are put: a chat of one user's turn is a problem."""
    steps: StepGenerator | None = None
    """The same generator for strategies that continue responses step by step; None = it cannot."""
    reads_tokens: frozenset[str] = frozenset()
    """Models that read the generator's token ids; the others get its texts."""
    search: SearchSection = field(default_factory=SearchSection)
    """Of which the numbers are that a request leaves out."""
    judge: str = "math"
    """As whose answers those of the candidates are equal or not."""

    def find_answer(self, text: str) -> str | None:
        """The final answer of a response; None if it states none."""
        return vote_answer(text, self.judge, self.answer_pattern)


class Asking:
    """The models, for endpoints. Whatever cannot be answered raises `RefusedError`."""

    def __init__(self, backend: Backend, limits: RequestLimits, gateway: Gateway | None = None):
        self._backend, self._limits, self._gateway = backend, limits, gateway

    def models(self) -> Iterable[ModelFacts]:
        return self._backend.models.values()

    def model(self, name: str | None) -> ModelFacts:
        """The model of that name; none = the first."""
        if name is None:
            return next(iter(self.models()))
        if name not in self._backend.models:
            served = ", ".join(self._backend.models)
            _refuse(404, "model_not_found", f"model {name[:100]!r} is not served; served are: {served}")
        return self._backend.models[name]

    async def score(
        self, facts: ModelFacts, asks: Sequence[Ask | Conversation], options: Options | None = None
    ) -> Scored:
        self.check_count(sum(len(ask.responses) for ask in asks))
        record = current_record()
        options = replace(options or Options(), request_id=record.request_id)
        try:
            with record.scoring(facts.name, asks) as scoring:
                async with asyncio.timeout(self._limits.timeout_seconds):
                    scored = await self._backend.score(facts.name, asks, options)
                scoring.answered(scored)
        except TimeoutError:
            seconds = self._limits.timeout_seconds
            _refuse(504, "timeout", f"not scored within {seconds:g} s; send fewer responses, or try again later")

        failures = [item.failure for items in scored.items for item in items]
        if failures[0] is not None and all(failure and failure.kind == "too_long" for failure in failures):
            _refuse(413, "too_many_tokens", failures[0].message)
        return scored

    def check_count(self, count: int) -> None:
        if count > self._limits.max_candidates:
            message = f"the request has {count} responses, at most {self._limits.max_candidates} are allowed"
            _refuse(413, "too_many_candidates", message)

    @property
    def max_candidates(self) -> int:
        return self._limits.max_candidates

    @property
    def best_of(self) -> int | None:
        """Candidates that the gateway generates for a request that does not say; None without a generator."""
        return None if self._gateway is None else self._gateway.best_of

    def gateway(self) -> Gateway:
        if self._gateway is None:
            _refuse(404, "no_generator", "this server has no generator: start it with serve.generator")
        return self._gateway

    async def generate(self, body: dict[str, Any], count: int) -> Generated:
        """`count` candidates, or as many as came in time."""
        gateway = self.gateway()
        if count > self._limits.max_candidates:
            message = f"the request asks for {count} candidates, at most {self._limits.max_candidates} are allowed"
            _refuse(413, "too_many_candidates", message)
        with current_record().generating() as generation:
            generated = await gateway.generator.generate(body, count, gateway.timeout_seconds)
            generation.model, generation.num_candidates = generated.model, len(generated.candidates)
            generation.prompt_tokens = generated.prompt_tokens
            generation.completion_tokens = generated.completion_tokens
        return generated

    def id(self, given: str | None) -> str:
        return given or uuid.uuid4().hex

    async def num_ready(self) -> dict[str, int]:
        return await self._backend.num_ready()


async def _asking(request: Request) -> Asking:  # a plain function would be sent to a thread and back
    found = request.app.state.asking
    assert isinstance(found, Asking)
    return found


Asked = Annotated[Asking, Depends(_asking)]
"""A parameter of an endpoint."""


def _refuse(status: int, kind: str, message: str) -> NoReturn:
    raise RefusedError(Refusal(status, kind, message))
