"""reference, score and a verifier's step labels: forward passes of whole models, one a worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prm_ray.planning.activations import Batch
from prm_ray.planning.fitplans import SETTINGS, training_of
from prm_ray.planning.memory import forward_memory
from prm_ray.planning.rates import forward_flops, forward_seconds
from prm_ray.planning.shapes import Shape
from prm_ray.planning.stageplan import Question, Resources, StagePlan, check_room, idle, room, spare, where

_LOADED = {"reference": "reference", "score": "score", "step_label": "verifier"}


def score_plan(question: Question, stage: str) -> StagePlan:
    """Plan of a stage that only scores. `reference` may be free, and `step_label` without a model."""
    config = question.config
    section: Any = config.section(stage)
    if stage == "reference" and config.reference.logprobs == "sampled":
        return StagePlan(stage, "no model", notes=("free: the sampler's own log-probs",))
    if stage == "step_label" and config.step_label.method == "truth":
        return StagePlan(stage, "no model")
    resources = Resources(section.num_workers, section.gpus_per_worker, SETTINGS)
    check_room(stage, resources, question.cluster)
    shape = question.shapes.get(_LOADED[stage], question.shape)
    tokens = max(section.token_budget, question.work.longest(shape.context) or 0)
    batch = Batch(tokens, tokens * question.work.wanted_share)
    adapter = _adapter(question, shape) if stage == "score" else 0
    terms = forward_memory(shape, batch, question.number, adapter, resources.gpus > 0)
    plan = StagePlan(
        stage,
        where(resources, question.cluster),
        terms,
        spare(terms, resources.gpus > 0),
        room(resources, question.cluster),
        tokens=_tokens(question, stage),
        gpus=resources.workers * resources.gpus,
        notes=idle(stage, resources, question.cluster),
    )
    return plan if plan.have is None else _timed(plan, question, shape, resources)


def _adapter(question: Question, shape: Shape) -> int:
    how = training_of(question.config.train)
    return how.trained(shape) if how.lora_rank and question.config.score.model is None else 0


def _timed(plan: StagePlan, question: Question, shape: Shape, resources: Resources) -> StagePlan:
    visible = question.work.prompt_tokens + question.work.response_tokens / 2
    a_token = forward_flops(shape, visible)
    device, cluster = question.cluster.device, question.cluster
    whole = resources.workers * min(1.0, resources.gpus) if device.is_gpu else min(resources.workers, cluster.nodes)
    rate = whole / forward_seconds(a_token, device)
    seconds = None if plan.tokens is None else plan.tokens / rate
    flops = None if plan.tokens is None else plan.tokens * a_token
    return replace(plan, tokens_per_second=rate, seconds=seconds, flops=flops)


def _tokens(question: Question, stage: str) -> float | None:
    """Prompts once for all their responses."""
    work, config = question.work, question.config
    splits = {"reference": (work.num_train, work.num_test), "step_label": (work.num_train,), "score": (work.num_test,)}
    if None in splits[stage]:
        return None
    num_prompts = sum(number or 0 for number in splits[stage])
    responses = work.num_responses
    if stage == "step_label":
        responses = min(responses, config.step_label.num_responses or responses)
    tokens = work.of(num_prompts, responses).tokens(shared_prompt=True)
    if stage == "reference" and work.num_train and (mismatched := config.reference.mismatched):
        tokens += work.of(work.num_train, mismatched).tokens(shared_prompt=True)  # in a pass of their own
    return tokens
