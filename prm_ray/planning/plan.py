"""A run's plan: its stages that need a model, each with memory, time and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.planning.advice import advise
from prm_ray.planning.engineplans import engine_plan
from prm_ray.planning.fitplans import fit_plan
from prm_ray.planning.hardware import Cluster
from prm_ray.planning.knownmodels import model_shape
from prm_ray.planning.scoreplans import score_plan
from prm_ray.planning.stageplan import Question, StagePlan, TooFewGPUsError
from prm_ray.planning.workload import workload_of

_PLANS: Mapping[str, Callable[[Question, str], StagePlan]] = {
    "warmup": fit_plan,
    "generate": engine_plan,
    "reference": score_plan,
    "train": fit_plan,
    "score": score_plan,
}


@dataclass(frozen=True)
class Plan:
    """All stages of a run that need a model, in order."""

    question: Question
    source: str
    """Where the model's shape was read."""
    stages: tuple[StagePlan, ...]
    advice: dict[str, tuple[str, ...]]
    """Stage that does not fit -> settings that make it fit, or what else would."""

    @property
    def fits(self) -> bool:
        return all(stage.fits is not False for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        times = [stage.seconds for stage in self.stages if stage.tokens_per_second or stage.seconds]
        return sum(time for time in times if time is not None) if times and None not in times else None


def plan_run(
    config: RunConfig, cluster: Cluster, prompt_tokens: float | None = None, response_tokens: float | None = None
) -> Plan:
    """Raises `UserError` for a model whose shape is not known, or more GPUs asked than there are."""
    shape, source = model_shape(config.model.name)
    shapes = {"model": shape}
    others = {"reference": config.reference.model, "score": config.score.model, "verifier": config.step_label.verifier}
    for use, name in others.items():
        if name is not None:
            shapes[use] = model_shape(str(name))[0]
    question = Question(config, cluster, shapes, workload_of(config, shape, prompt_tokens, response_tokens))
    stages = [stage for stage in config.stages() if stage in _PLANS or stage == "step_label"]
    plans = _plan_stages(question, stages)
    advice = {plan.stage: advise(question, plan.stage, plan_stage) for plan in plans if plan.fits is False}
    return Plan(question, source, plans, advice)


def _plan_stages(question: Question, stages: list[str]) -> tuple[StagePlan, ...]:
    plans: list[StagePlan] = []
    failures: list[TooFewGPUsError] = []
    for stage in stages:
        try:
            plans.append(plan_stage(question, stage))
        except TooFewGPUsError as failure:
            failures.append(failure)
    if failures:
        raise UserError(f"{failures[0]}; all would have room with {' '.join(each.instead for each in failures)}")
    return tuple(plans)


def plan_stage(question: Question, stage: str) -> StagePlan:
    if stage == "step_label":
        of_engines = question.config.step_label.method == "monte_carlo"
        return (engine_plan if of_engines else score_plan)(question, stage)
    return _PLANS[stage](question, stage)
