"""Samples responses with vLLM, token ids in and token ids out; the only file that imports it.

All samplers keep the token ids as sampled (end token included) and the raw log-prob of each: the model's own, before
temperature and top-p. Texts are decoded by the one function everything else decodes with.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from prm_ray.core.device import number_format
from prm_ray.models import resolve_model
from prm_ray.runlog import log
from prm_ray.stages.engineguard import OWNER
from prm_ray.stages.ownsampler import OwnSampler
from prm_ray.stages.sampling import Decoding, Sample, Sampler, SamplerOptions
from prm_ray.stages.transformers_sampler import TransformersSampler

_CPU_MAX_SEQUENCES = 256
"""Responses a CPU engine decodes at once; memory traffic of the weights is then shared by all of them."""
_CPU_KV_CACHE_GIB = 2
_CPU_BLOCK = 32
"""Tokens of a block of the prefix cache; of vLLM's own 128, a short prompt or step fills none and is never reused."""


def make_sampler(options: SamplerOptions) -> Sampler:
    ours: dict[str, Callable[[SamplerOptions], Sampler]] = {"vllm": VllmSampler, "transformers": TransformersSampler}
    return ours.get(options.backend, OwnSampler)(options)


class VllmSampler:
    """One vLLM engine. All samples of a prompt are one request, so the prompt is computed once."""

    def __init__(self, options: SamplerOptions):
        _set_engine_environment(options)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._options = options
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**_engine_options(options)))
        atexit.register(self.close)

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]:
        limits = max_tokens or [self._options.max_tokens] * len(prompts)
        decodings = [decoding or self._options.decoding] * len(prompts)
        return await asyncio.gather(*map(self._request, prompts, seeds, limits, decodings))

    async def _request(self, prompt: Sequence[int], seed: int, max_tokens: int, decoding: Decoding) -> list[Sample]:
        from vllm.v1.engine.exceptions import EngineDeadError

        params = self._params(seed, max_tokens, decoding)
        tokens: Any = {"type": "token", "prompt_token_ids": list(prompt)}
        request = self._engine.generate(tokens, params, request_id=uuid.uuid4().hex)
        try:
            outputs = [output async for output in request][-1].outputs
        except EngineDeadError as error:
            # The engine's process is gone and never comes back; Ray starts a dead actor anew and redoes its shard.
            log.error("the vLLM engine died (%s): leaving the worker, so that it starts anew", error)
            os._exit(1)
        assert len(outputs) == decoding.num_samples
        return [_as_sample(output) for output in sorted(outputs, key=lambda output: output.index)]

    def _params(self, seed: int, max_tokens: int, decoding: Decoding) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=decoding.num_samples,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            stop=list(decoding.stop),
            max_tokens=max_tokens,
            # vLLM on a CPU crashes on a seeded request whose prompt comes partly from the prefix cache
            seed=seed if self._options.num_gpus else None,
            logprobs=0,  # the sampled token's own log-prob and no others
            detokenize=bool(decoding.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,  # the default delivers one sample a message and loses the rest
        )

    def close(self) -> None:
        """Stop the engine's own processes; nobody else would."""
        engine, self._engine = getattr(self, "_engine", None), None
        if engine is not None:
            engine.shutdown()

    def __del__(self) -> None:
        self.close()


def _engine_options(options: SamplerOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": resolve_model(options.model),
        "dtype": number_format(options.dtype, "cuda" if options.num_gpus else "cpu"),
        "trust_remote_code": options.trust_remote_code,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": max(1, options.num_gpus),
        "seed": options.seed,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if not options.num_gpus:
        settings |= {"enforce_eager": True, "max_num_seqs": _CPU_MAX_SEQUENCES, "block_size": _CPU_BLOCK}
    return settings | options.engine_options


def _set_engine_environment(options: SamplerOptions) -> None:
    """vLLM reads these when it is imported and hands them to its processes."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about its own defaults
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ[OWNER] = str(os.getpid())
    if options.num_gpus:
        return
    # By default every engine is pinned to the first core; unpinned, the scheduler shares the machine out.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_CPU_KV_CACHE_GIB))
    # Ray sets this to the actor's logical CPUs, which only count actors; what the user chose comes first.
    os.environ["OMP_NUM_THREADS"] = str(options.threads.count())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _as_sample(output: Any) -> Sample:
    tokens = list(output.token_ids)
    logprobs = [float(at[token].logprob) for at, token in zip(output.logprobs, tokens, strict=True)]
    # vLLM names the stop text that was found, and no reason (or a token id) where an end token was sampled.
    return Sample(tokens, logprobs, output.finish_reason, at_stop_text=isinstance(output.stop_reason, str))
