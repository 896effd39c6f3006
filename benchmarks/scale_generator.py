"""A generator that computes nothing: every response is the same few tokens. For `generate.backend`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prm_ray.models import encode_response, load_tokenizer
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions

ANSWER = "The answer is 7."


class NoOp:
    """`generate.engine_options.seconds_per_prompt` is how long it sleeps, as if an engine worked elsewhere."""

    def __init__(self, options: SamplerOptions):
        tokens = encode_response(load_tokenizer(options.model), ANSWER)
        self._sample = Sample(tokens, [-0.5] * len(tokens), "stop")
        self._num_samples = options.decoding.num_samples
        self._seconds_per_prompt = float(options.engine_options.get("seconds_per_prompt", 0))

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]:
        await asyncio.sleep(self._seconds_per_prompt * len(prompts))
        return [[self._sample] * self._num_samples for _ in prompts]

    def close(self) -> None:
        """Nothing to stop."""
