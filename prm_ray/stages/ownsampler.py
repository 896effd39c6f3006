"""A sampler of the user's own: found, made, and what it returns checked, for a wrong table is found out days later."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prm_ray.errors import UserError
from prm_ray.stages.sampling import Decoding, Sample, Sampler, SamplerOptions

_REASONS = ("stop", "length")


def find_sampler(name: str) -> Callable[[SamplerOptions], Sampler]:
    """What `generate.backend` names as `module:Class`. Raises `UserError` if it is not there."""
    module, attribute = name.split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"generate.backend {name!r} does not load: {error}") from None


class OwnSampler:
    """Raises `UserError` if it cannot be made, or returns something else than asked for."""

    def __init__(self, options: SamplerOptions):
        self._name, self._decoding = options.backend, options.decoding
        make = find_sampler(options.backend)
        try:
            self._sampler = make(options)
        except Exception as error:  # whatever the user's own code raises
            raise UserError(
                f"generate.backend {self._name!r} cannot be made: {type(error).__name__}: {error}"
            ) from error

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]:
        answers = await self._sampler.sample(prompts, seeds, max_tokens, decoding)
        fault = next(_faults(answers, len(prompts), (decoding or self._decoding).num_samples), None)
        if fault is not None:
            raise UserError(f"generate.backend {self._name!r} returned {fault}")
        return answers

    def close(self) -> None:
        self._sampler.close()


def _faults(answers: Any, num_prompts: int, num_samples: int) -> Iterator[str]:
    if not isinstance(answers, list | tuple):
        yield f"{type(answers).__name__}, not a list of samples for each prompt"
        return
    if len(answers) != num_prompts:
        yield f"answers to {len(answers)} prompts, not {num_prompts}"
    for samples in answers:
        if not isinstance(samples, list | tuple) or len(samples) != num_samples:
            number = len(samples) if isinstance(samples, list | tuple) else type(samples).__name__
            yield f"{number} samples for a prompt, not {num_samples}"
            return
        for sample in samples:
            yield from _faults_of_one(sample)


def _faults_of_one(sample: Any) -> Iterator[str]:
    if not isinstance(sample, Sample):
        yield f"{type(sample).__name__} where a Sample must be"
        return
    if not _are(int, sample.tokens) or any(token < 0 for token in sample.tokens):
        yield f"the tokens {sample.tokens!r:.80}, which must be a list of token ids"
    elif not _are(float, sample.logprobs) or not all(map(math.isfinite, sample.logprobs)):
        yield f"the log-probs {sample.logprobs!r:.80}, which must be a list of finite floats"
    elif len(sample.logprobs) != len(sample.tokens):
        yield f"{len(sample.logprobs)} log-probs for {len(sample.tokens)} tokens"
    elif sample.finish_reason not in _REASONS:
        yield f"the finish_reason {sample.finish_reason!r}, which must be {' or '.join(_REASONS)}"


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
