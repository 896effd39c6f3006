"""Generators for `generate.backend` that compute nothing, and fail at the prompts that say so."""

import os
from collections.abc import Sequence

from prm_ray.models import decode, load_tokenizer
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions


class Parrot:
    """Says the last tokens of the prompt. Dies of `deadly`, raises at `refused`."""

    def __init__(self, options: SamplerOptions):
        self._tokenizer, self._num_samples = load_tokenizer(options.model), options.decoding.num_samples

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]:
        text = " ".join(decode(self._tokenizer, prompt) for prompt in prompts)
        if "deadly" in text:
            os._exit(1)
        if "refused" in text:
            raise RuntimeError("no such prompt, please")
        return [[Sample(list(prompt[-3:]), [-1.0] * 3, "stop")] * self._num_samples for prompt in prompts]

    def close(self) -> None:
        """Nothing to stop."""
