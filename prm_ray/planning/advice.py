"""The smallest change of settings that makes a stage fit.

Changes that alter no result come first, fewer before more, in the order: a lower token budget, gradient checkpointing,
weights over all GPUs. Then an adapter, which learns something else, then more or larger GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from prm_ray.errors import UserError
from prm_ray.planning.hardware import GPUS, Cluster
from prm_ray.planning.stageplan import Question, StagePlan
from prm_ray.settings import FitSection, TrainSection

PlanStage = Callable[[Question, str], StagePlan]
Change = dict[str, Any]
"""Keys of the stage's section -> values."""

_RANK = 16
_STEP = 256
"""Token budgets are multiples of it."""
_MOST_NODES, _USUAL_NODE = 64, 8
_BUDGET: Change = {"token_budget": None}
"""A lower budget; which one is found last, as the largest that fits."""


def advise(question: Question, stage: str, plan_stage: PlanStage) -> tuple[str, ...]:
    """Words for the command line, `section.key=value` or a flag; none where nothing that is tried helps."""
    if stage == "generate" or (stage == "step_label" and question.config.step_label.method == "monte_carlo"):
        tried = [(question.cluster, change) for change in _engines(question)]
        tried += [(cluster, change) for cluster in _larger(question.cluster) for change in _engines(question, cluster)]
        section = "generate"
    elif stage in ("warmup", "train"):
        tried = [(question.cluster, change) for change in _fits(question, stage, question.cluster)]
        tried += [(each, change) for each in _larger(question.cluster) for change in _fits(question, stage, each)]
        section = stage
    else:
        tried = [(question.cluster, change) for change in _scores(question, stage)]
        tried += [(cluster, change) for cluster in _better(question.cluster) for change in ({}, _BUDGET)]
        section = stage
    for cluster, change in tried:
        asked = replace(question, cluster=cluster)
        if (settled := _settled(asked, stage, section, change, plan_stage)) is not None:
            return (*_flags(question.cluster, cluster), *_words(asked, section, settled))
    return ()


def _settled(question: Question, stage: str, section: str, change: Change, plan_stage: PlanStage) -> Change | None:
    """The change, its token budget chosen, if it makes the stage fit."""
    if "token_budget" not in change:
        return change if _does_fit(question, stage, section, change, plan_stage) else None
    settings: Any = question.config.section(section)
    now: int = settings.token_budget
    least = max(question.work.longest(question.shape.context) or 0, _STEP)  # below the longest text it bounds nothing
    budgets = [budget for budget in range(now // _STEP * _STEP, least, -_STEP) if budget < now] + [least]
    for budget in budgets if least < now else ():
        found = change | {"token_budget": budget}
        if _does_fit(question, stage, section, found, plan_stage):
            return found
    return None


def _does_fit(question: Question, stage: str, section: str, change: Change, plan_stage: PlanStage) -> bool:
    try:
        return plan_stage(with_settings(question, section, change), stage).fits is not False  # a stage may become free
    except UserError:  # such as more workers than there are GPUs
        return False


def _fits(question: Question, stage: str, cluster: Cluster) -> Iterator[Change]:
    section = question.config.section(stage)
    assert isinstance(section, FitSection)
    changes: list[Change] = [_BUDGET]
    if not section.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    workers = cluster.places(section.gpus_per_worker) if section.gpus_per_worker else cluster.nodes
    if workers > 1 and (section.parallel, section.num_workers) != ("fsdp", workers):
        changes.append({"parallel": "fsdp", "num_workers": workers})
    elif section.num_workers > 1 and not section.gpus_per_worker:
        changes.append({"num_workers": 1})
    for adapter in ({}, *_adapter(section)):
        for size in range(len(changes) + 1):
            for chosen in combinations(changes, size):
                yield {key: value for change in (*chosen, adapter) for key, value in change.items()}


def _adapter(section: FitSection) -> Iterator[Change]:
    if not isinstance(section, TrainSection) or section.lora_rank or section.reward == "value_head":
        return
    cannot_stay = {"freeze_embeddings": False, "norm_lr": None}
    yield {"lora_rank": _RANK} | {key: none for key, none in cannot_stay.items() if getattr(section, key) != none}


def _scores(question: Question, stage: str) -> Iterator[Change]:
    yield _BUDGET
    config = question.config
    section: Any = config.section(stage)
    if not section.gpus_per_worker and section.num_workers > 1:
        yield {"num_workers": 1}
    if stage == "reference" and not (config.import_.source or config.reference.model or config.reference.mismatched):
        yield {"logprobs": "sampled"}


def _engines(question: Question, cluster: Cluster | None = None) -> Iterator[Change]:
    """More GPUs an engine, up to a node's: fewer engines where they would not be enough for all."""
    section, cluster = question.config.generate, cluster or question.cluster
    gpus = section.gpus_per_engine * 2
    while 0 < gpus <= cluster.per_node:
        engines = min(section.num_engines, cluster.places(gpus))
        fewer = {} if engines == section.num_engines else {"num_engines": engines}
        yield {"gpus_per_engine": gpus} | fewer
        gpus *= 2


def _larger(cluster: Cluster) -> Iterator[Cluster]:
    """More of the same GPUs: nodes filled up to the usual eight, then more nodes."""
    if not cluster.device.is_gpu:
        return
    per_node, nodes = cluster.per_node, cluster.nodes
    while per_node * 2 <= _USUAL_NODE:
        per_node *= 2
        yield replace(cluster, per_node=per_node)
    while nodes * 2 <= _MOST_NODES:
        nodes *= 2
        yield replace(cluster, per_node=per_node, nodes=nodes)


def _better(cluster: Cluster) -> Iterator[Cluster]:
    """GPUs with more memory, the least first: a pass is not cut over several."""
    larger = [device for device in GPUS.values() if device.memory > cluster.device.memory]
    for device in sorted(larger, key=lambda each: each.memory) if cluster.device.is_gpu else ():
        yield replace(cluster, device=device)


def with_settings(question: Question, section: str, change: Change) -> Question:
    """The same question with other values in one section of its config."""
    changed = question.config.section(section).model_copy(update=change)
    return replace(question, config=question.config.model_copy(update={section: changed}))


def _flags(before: Cluster, after: Cluster) -> list[str]:
    words = [] if after.nodes == before.nodes else [f"--nodes {after.nodes}"]
    if (after.per_node, after.device) != (before.per_node, before.device):
        words.insert(0, f"--gpus {after.per_node}x{after.device.name}")
    return words


def _words(question: Question, section: str, change: Change) -> list[str]:
    now = question.config.section(section)
    return [f"{section}.{key}={_shown(value)}" for key, value in change.items() if getattr(now, key) != value]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
