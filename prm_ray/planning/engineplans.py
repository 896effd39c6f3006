"""generate, and step labels by completions: engines of vLLM, their weights over an engine's GPUs, the rest for keys and
values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prm_ray.errors import UserError
from prm_ray.planning.activations import FLOAT, forward_of_layer
from prm_ray.planning.hardware import GIB, Device
from prm_ray.planning.memory import Terms, total
from prm_ray.planning.rates import decoding_rate, forward_flops, forward_seconds, kv_bytes
from prm_ray.planning.stageplan import Question, Resources, StagePlan, check_room, idle, room, where
from prm_ray.planning.workload import STEPS

SETTINGS = ("num_engines", "gpus_per_engine")
_UTILIZATION = 0.92
_SEQUENCES, _BATCHED = 128, 2048
"""vLLM 0.32 on a GPU where `generate.engine_options` says nothing: share of memory, responses at once, tokens a pass.
"""
_CPU_SEQUENCES, _CPU_CACHE = 256, 2 * GIB
"""What `stages.sampler` sets on a CPU."""
_SHARDS_AT_ONCE = 2
_CONTEXT_AND_GRAPHS = 2.5 * GIB
_CPU_PROCESSES = 2 * GIB


@dataclass(frozen=True)
class _Engine:
    """One engine: the least it needs, what it may have, and how many responses it works on at once."""

    terms: Terms
    spare: float
    have: float | None
    places: int
    is_limited: bool
    """By vLLM's own default number of responses."""


def engine_plan(question: Question, stage: str) -> StagePlan:
    section, cluster = question.config.generate, question.cluster
    resources = Resources(section.num_engines, section.gpus_per_engine, SETTINGS)
    check_room("generate", resources, cluster)
    _check_heads(question, section.gpus_per_engine)
    engine = _engine(question, resources)
    plan = StagePlan(
        stage,
        where(resources, cluster, "engine"),
        engine.terms,
        engine.spare,
        engine.have,
        tokens=_written(question, stage),
        gpus=resources.workers * resources.gpus,
        notes=(*idle("generate", resources, cluster), *_limited(engine)),
    )
    return _timed(plan, question, stage, resources, engine) if plan.fits else plan


def _timed(plan: StagePlan, question: Question, stage: str, resources: Resources, engine: _Engine) -> StagePlan:
    shape, work, gpus = question.shape, question.work, int(resources.gpus)
    visible = work.prompt_tokens + work.response_tokens / 2
    device = question.cluster.device
    if not device.is_gpu:
        device = _part(device, max(1.0, resources.workers / question.cluster.nodes))
    rate = resources.workers * decoding_rate(shape, question.number, engine.places, visible, device, gpus)
    read = _read(question, stage)
    if plan.tokens is None or read is None:
        return replace(plan, tokens_per_second=rate)
    reading = forward_seconds(read * forward_flops(shape, work.prompt_tokens / 2), device)
    seconds = plan.tokens / rate + reading / resources.workers / max(1, gpus)
    flops = (plan.tokens + read) * forward_flops(shape, visible)
    return replace(plan, tokens_per_second=plan.tokens / seconds, seconds=seconds, flops=flops)


def _engine(question: Question, resources: Resources) -> _Engine:
    options, work, shape = question.config.generate.engine_options, question.work, question.shape
    parts, on_gpu = max(1, int(resources.gpus)), resources.gpus > 0
    most = int(options.get("max_num_seqs", _SEQUENCES if on_gpu else _CPU_SEQUENCES))
    longest = work.longest(shape.context) or question.config.generate.max_tokens
    a_token = kv_bytes(shape, question.number) / min(parts, shape.kv_heads)
    passing = int(options.get("max_num_batched_tokens", _BATCHED)) * forward_of_layer(shape, question.number)
    terms: Terms = {
        "weights": question.number * shape.parameters / parts,
        "largest pass": passing / parts + 2 * FLOAT * most * shape.vocab,
        "KV cache": longest * a_token if on_gpu else float(_CPU_CACHE),
    }
    spare = _CONTEXT_AND_GRAPHS if on_gpu else _CPU_PROCESSES
    have = room(resources, question.cluster)
    if have is not None and on_gpu:
        have *= float(options.get("gpu_memory_utilization", _UTILIZATION))
    left = (have or 0.0) - total(terms) - spare if on_gpu else 0.0
    cache = (max(left, 0.0) + terms["KV cache"]) / a_token
    in_hand = _SHARDS_AT_ONCE * question.config.generate.problems_per_shard * work.num_responses
    fitting = min(in_hand, int(cache / (work.prompt_tokens / work.num_responses + work.response_tokens)))
    return _Engine(
        terms, spare, have, max(1, min(most, fitting)), on_gpu and "max_num_seqs" not in options and fitting >= 2 * most
    )


def _limited(engine: _Engine) -> tuple[str, ...]:
    if not engine.is_limited:
        return ()
    return (f"vLLM works on {engine.places} responses at once, there is room for twice as many: "
            f"generate.engine_options.max_num_seqs={2 * engine.places}",)  # fmt: skip


def _check_heads(question: Question, gpus: int) -> None:
    if gpus > 1 and question.shape.heads % gpus:
        raise UserError(
            f"generate.gpus_per_engine {gpus} must divide the model's {question.shape.heads} attention heads"
        )


def _part(device: Device, engines: float) -> Device:
    return Device(device.name, device.memory / engines, device.flops / engines, device.bandwidth, is_gpu=False)


def _written(question: Question, stage: str) -> float | None:
    """Response tokens, or tokens of completions: each of half a response on average."""
    work = question.work
    if stage == "generate":
        if work.num_train is None or work.num_test is None:
            return None
        return (work.num_train + work.num_test) * work.num_responses * work.response_tokens
    completed = _completed(question)
    return (
        None if completed is None else completed * question.config.step_label.num_completions * work.response_tokens / 2
    )


def _read(question: Question, stage: str) -> float | None:
    """Tokens of prompts, once for all responses; of prefixes the part that the engine's prefix cache does not have."""
    work = question.work
    if stage == "generate":
        if work.num_train is None or work.num_test is None:
            return None
        return (work.num_train + work.num_test) * work.prompt_tokens
    completed = _completed(question)
    return None if completed is None else completed * work.response_tokens / STEPS


def _completed(question: Question) -> float | None:
    """Prefixes that are completed: the ends of all steps but the last, of each training response."""
    work, section = question.work, question.config.step_label
    if work.num_train is None:
        return None
    return work.num_train * min(work.num_responses, section.num_responses or work.num_responses) * (STEPS - 1)
