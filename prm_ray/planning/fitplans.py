"""warmup and train: memory and time of an optimizer step, and how many there are."""

from __future__ import annotations

import math
from dataclasses import replace

from prm_ray.planning.activations import FLOAT, Batch
from prm_ray.planning.hardware import GIB
from prm_ray.planning.memory import Training, training_memory
from prm_ray.planning.rates import Stepping, step_seconds, training_flops
from prm_ray.planning.stageplan import Question, Resources, StagePlan, check_room, idle, room, spare, where
from prm_ray.planning.workload import trained_on
from prm_ray.settings import FitSection, TrainSection

SETTINGS = ("num_workers", "gpus_per_worker")


def training_of(section: FitSection) -> Training:
    lora = section if isinstance(section, TrainSection) else None
    return Training(
        section.parallel,
        section.num_workers,
        section.gradient_checkpointing,
        lora.lora_rank if lora else 0,
        tuple(lora.lora_targets) if lora else (),
        section.freeze_embeddings,
        section.cycles,
    )


def fit_plan(question: Question, stage: str) -> StagePlan:
    section: FitSection = question.config.warmup if stage == "warmup" else question.config.train
    how, shape, cluster = training_of(section), question.shape, question.cluster
    resources = Resources(section.num_workers, section.gpus_per_worker, SETTINGS)
    check_room(stage, resources, cluster)
    on_gpu = resources.gpus > 0
    step = _step(section, question, stage)
    tokens = max(section.token_budget, question.work.longest(shape.context) or 0)  # a longer text is a batch alone
    batch = Batch(tokens, tokens * question.work.wanted_share, step.passes)
    terms = training_memory(shape, how, batch, question.number, on_gpu)
    plan = StagePlan(
        stage,
        where(resources, cluster),
        terms,
        spare(terms, on_gpu),
        room(resources, cluster),
        tokens=_tokens(question, stage),
        gpus=resources.workers * resources.gpus,
        notes=(*idle(stage, resources, cluster), *_loading(question, section, how)),
    )
    return plan if plan.have is None else _timed(plan, question, section, how, step)


def _timed(plan: StagePlan, question: Question, section: FitSection, how: Training, step: Stepping) -> StagePlan:
    shape, visible = question.shape, _visible(question)
    seconds, waiting = step_seconds(shape, how, step, visible, question.number, question.cluster)
    rate = step.tokens * how.num_workers / seconds
    if waiting > seconds / 4:
        note = f"{waiting / seconds:.0%} of the time goes into waiting for other workers: raise {plan.stage}.batch_size"
        plan = replace(plan, notes=(*plan.notes, note))
    if plan.tokens is None:
        return replace(plan, tokens_per_second=rate)
    flops = plan.tokens * training_flops(shape, how, visible)
    return replace(plan, tokens_per_second=rate, flops=flops, seconds=plan.tokens / rate)


def _step(section: FitSection, question: Question, stage: str) -> Stepping:
    """A worker's part of an optimizer step: whole prompts, their tokens once."""
    responses = 1 if stage == "warmup" else question.work.num_responses
    texts = question.work.of(section.batch_size / responses, responses)
    tokens = texts.tokens(shared_prompt=True) / section.num_workers
    devices = section.gpus_per_worker or question.cluster.nodes / section.num_workers
    return Stepping(tokens, max(1, math.ceil(tokens / section.token_budget)), devices)


def _tokens(question: Question, stage: str) -> float | None:
    config = question.config
    if stage == "warmup":
        return question.work.of(config.warmup.num_problems, 1).tokens(shared_prompt=True) * config.warmup.epochs
    rollouts = trained_on(config, question.work)
    return None if rollouts is None else rollouts.tokens(shared_prompt=True) * config.train.epochs


def _visible(question: Question) -> float:
    """Earlier tokens that a response's token looks at, on average."""
    return question.work.prompt_tokens + question.work.response_tokens / 2


def _loading(question: Question, section: FitSection, how: Training) -> tuple[str, ...]:
    """With `fsdp` every worker first has the whole model in main memory."""
    if section.parallel != "fsdp" or not section.gpus_per_worker:
        return ()
    each = question.shape.parameters * (question.number if how.lora_rank else FLOAT)
    on_a_node = min(how.num_workers, question.cluster.places_on_a_node(section.gpus_per_worker))
    gib = on_a_node * each / GIB
    models = f"{on_a_node} whole model{'s' if on_a_node > 1 else ''}"
    return (f"while it loads, a node needs {gib:.0f} GiB of main memory: {models}",)
