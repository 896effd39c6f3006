"""vLLM as this project starts it, to generate candidates and to read `prompt_logprobs` of given ones."""

from __future__ import annotations

import asyncio
import gc
import math
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, ways
from benchmarks.common import Setting
from prm_ray.core.packing import PromptGroup
from prm_ray.stages.sampler import VllmSampler
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions
from prm_ray.stages.threads import Threads


class Engine:
    """One engine; token ids in and out, no tokenizer, no text."""

    def __init__(self, setting: Setting, folder: Path):
        self._loop = asyncio.new_event_loop()
        path = _model_folder(setting.model, folder)
        longest = setting.prompt + math.ceil(setting.response * (1 + setting.spread))
        options = SamplerOptions(
            backend="vllm",
            model=path,
            dtype=setting.dtype,
            trust_remote_code=False,
            decoding=Decoding(setting.n, temperature=1.0, top_p=1.0),
            max_tokens=setting.response,
            max_model_len=max(64, longest + 1),
            num_gpus=int(torch.cuda.is_available()),
            threads=Threads(number=setting.threads),
            seed=0,
            engine_options={"skip_tokenizer_init": True},
        )
        self._sampler = self._loop.run_until_complete(_start(options))
        self.vocab_size = _vocab_size(path)

    def generate(self, prompts: list[list[int]]) -> list[list[Sample]]:
        """`setting.n` samples a prompt, each of `setting.response` tokens: an end token does not end them."""
        return self._loop.run_until_complete(self._sampler.sample(prompts, list(range(len(prompts)))))

    def prompt_logprobs(self, groups: list[PromptGroup]) -> list[Tensor]:
        """Log-probs of each response's tokens, by one request a response."""
        return self._loop.run_until_complete(self._sampler.prompt_logprobs(ways.rows_of(groups)))

    def close(self) -> None:
        self._sampler.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()


class _Sampler(VllmSampler):
    def _params(self, seed: int, max_tokens: int, decoding: Decoding) -> Any:
        params = super()._params(seed, max_tokens, decoding)
        params.ignore_eos = True
        return params

    async def prompt_logprobs(self, rows: list[ways.Row]) -> list[Tensor]:
        return await asyncio.gather(*(self._score(row) for row in rows))

    async def _score(self, row: ways.Row) -> Tensor:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt, response = row
        params = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        tokens: Any = {"type": "token", "prompt_token_ids": [*prompt, *response]}
        request = self._engine.generate(tokens, params, request_id=uuid.uuid4().hex)
        (output,) = [output async for output in request]
        wanted = output.prompt_logprobs[len(prompt) :]
        return torch.tensor([at[token].logprob for at, token in zip(wanted, response, strict=True)])


async def _start(options: SamplerOptions) -> _Sampler:
    return _Sampler(options)  # within the loop it will answer in


def _model_folder(name: str, folder: Path) -> str:
    """vLLM reads folders: a random-weight model is written into the run's folder once."""
    if name not in common.SHAPES:
        from prm_ray.models import resolve_model

        return resolve_model(name)
    path = folder / "model"
    if not path.exists():
        common.load(name, "bfloat16").save_pretrained(path)
        gc.collect()
    return str(path)


def _vocab_size(path: str) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).vocab_size
