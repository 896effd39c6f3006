"""A language model in the application itself, for the gateway: chat completions by the samplers of `generate`, whole or
step by step."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import base_model, context_length, decode, encode_prompt, load_tokenizer
from prm_ray.scoring.asks import Refusal
from prm_ray.search.candidate import Candidate, Draw, Proposal
from prm_ray.serve.bodies import AtLeastOne, Given, Listed, Message, validation_message
from prm_ray.serve.generator import ALL_EQUAL
from prm_ray.serve.steps import Opening
from prm_ray.stages.continuing import Continuer
from prm_ray.stages.sampler import make_sampler
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions, sampler_options, stop_place

_STOPS = 4
"""OpenAI's own limit."""


class GenerationBody(Given):
    """What of OpenAI's chat completions this generator can do; anything else is refused by name."""

    model_config = ConfigDict(extra="forbid")

    messages: AtLeastOne[Message]
    n: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | Annotated[Listed[str], Field(max_length=_STOPS)] | None = None
    seed: int | None = None
    model: str | None = None
    user: str | None = None
    stream: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


def generator_options(config: RunConfig) -> SamplerOptions:
    """An engine for chats as long as the model reads, unlike those of a run, whose prompts and responses have limits.

    Raises `UserError` for a sampler that cannot run here.
    """
    section = config.generate.model_copy(update={"num_engines": config.serve.generator_replicas, "num_samples": 1})
    model = base_model(config)
    options = sampler_options(config.model_copy(update={"generate": section}), model)
    context = context_length(model, options.trust_remote_code)
    return replace(options, max_model_len=context or options.max_model_len)


class ChatModel:
    """Answers request bodies with bodies of chat completions."""

    def __init__(self, options: SamplerOptions, name: str, chat_template: Path | None):
        self._options, self._name = options, name
        self._tokenizer = load_tokenizer(options.model, chat_template, options.trust_remote_code)
        self._sampler = make_sampler(options)
        self._continuers: dict[str, Continuer] = {}
        """By step rule; they share the engine."""
        # transformers' sampler blocks whoever calls it, and holds one batch at a time
        self._one_at_a_time = asyncio.Lock()

    async def complete(self, body: dict[str, Any]) -> dict[str, Any] | Refusal:
        try:
            request = GenerationBody.model_validate(body)
        except ValidationError as error:
            return _refused(error)
        if request.temperature == 0 and request.n > 1:
            return ALL_EQUAL
        opening = self._open(request)
        if isinstance(opening, Refusal):
            return opening
        return self._completion(await self._sample(opening), request, len(opening.prompt))

    async def begin(self, body: dict[str, Any]) -> Opening | Refusal:
        """What responses that are continued step by step begin with."""
        try:
            return self._open(GenerationBody.model_validate(body))
        except ValidationError as error:
            return _refused(error)

    async def continue_response(self, opening: Opening, step_rule: str, start: Candidate, draw: Draw) -> Proposal:
        if step_rule not in self._continuers:
            self._continuers[step_rule] = Continuer(self._options, self._tokenizer, step_rule, self._sampler)
        continuer = self._continuers[step_rule]
        return await continuer(opening.prompt, start.tokens, start.text, draw, opening.max_tokens, opening.decoding)

    def _open(self, request: GenerationBody) -> Opening | Refusal:
        try:
            prompt = encode_prompt(self._tokenizer, [message.model_dump() for message in request.messages])
        except UserError as error:
            return Refusal(400, "refused_by_generator", str(error))
        room = self._options.max_model_len - len(prompt)
        if room < 1:
            return Refusal(
                413,
                "too_many_tokens",
                f"the messages have {len(prompt)} tokens; the generator reads {self._options.max_model_len}",
            )
        wanted = request.max_completion_tokens or request.max_tokens or self._options.max_tokens
        decoding = Decoding(request.n, request.temperature, request.top_p, request.stops)
        seed = random.getrandbits(31) if request.seed is None else request.seed % 2**31
        return Opening(tuple(prompt), decoding, min(wanted, room), seed, self._name)

    async def _sample(self, opening: Opening) -> list[Sample]:
        asked = ([opening.prompt], [opening.seed], [opening.max_tokens], opening.decoding)
        if self._options.backend == "vllm":
            return (await self._sampler.sample(*asked))[0]
        async with self._one_at_a_time:
            return (await asyncio.to_thread(lambda: asyncio.run(self._sampler.sample(*asked))))[0]

    def _completion(self, samples: list[Sample], request: GenerationBody, prompt_tokens: int) -> dict[str, Any]:
        completion_tokens = sum(len(sample.tokens) for sample in samples)
        return {
            "model": self._name,
            "choices": [self._choice(index, sample, request.stops) for index, sample in enumerate(samples)],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        }

    def _choice(self, index: int, sample: Sample, stops: tuple[str, ...]) -> dict[str, Any]:
        text = decode(self._tokenizer, sample.tokens)
        end = stop_place(text, 0, stops)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text[:end]},
            "finish_reason": sample.finish_reason if end is None else "stop",
        }


def _refused(error: ValidationError) -> Refusal:
    return Refusal(400, "refused_by_generator", validation_message(error.errors()))
