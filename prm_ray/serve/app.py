"""The Serve application: one ingress that speaks HTTP, and for each model replicas that hold it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from prm_ray.config import RunConfig, parse_config
from prm_ray.scoring.asks import Ask, Conversation, ModelFacts, Options, Refusal, Scored, session_of
from prm_ray.scoring.replica import Limits, Replica
from prm_ray.scoring.served import ServedModel, load_scorer, reads_tokens_of, served_models
from prm_ray.serve.api import make_api
from prm_ray.serve.asking import Gateway, RequestLimits
from prm_ray.serve.deployments import STARTS, ask_replica, log_through_serve
from prm_ray.serve.generation import generator_options
from prm_ray.serve.generator import Generator, HttpGenerator
from prm_ray.serve.generatordeployment import DeploymentGenerator, generator_deployment
from prm_ray.serve.guard import Guard, GuardLimits, Traffic
from prm_ray.serve.keys import KeyRing
from prm_ray.serve.manifest import APP_NAME, INGRESS_CPUS, seconds_to_answer
from prm_ray.serve.tracing import make_traces
from prm_ray.serve.watching import watch
from prm_ray.settings import PromptSection, SearchSection, ServeSection
from prm_ray.stages.gpus import keep_to_own_gpus
from prm_ray.stages.threads import share_of_cores

_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
"""A problem goes to the replica that has it in its prefix cache, or to the next one if that is full."""


class ScorerReplica:
    """`Replica` as a Serve deployment."""

    def __init__(self, model: ServedModel, limits: Limits, num_replicas: int):
        log_through_serve()
        keep_to_own_gpus()
        # Loading is left with the one thread that Ray gives: threads of a second pool, though idle, make OpenMP put
        # those of the forward pass to sleep between two matrices in place of letting them spin.
        name, num_threads = serve.get_replica_context().replica_tag, share_of_cores(num_replicas)
        self._replica = Replica(load_scorer(model), limits, name, num_threads)

    async def score(self, asks: Sequence[Ask | Conversation], options: Options) -> Scored | Refusal:
        return await self._replica.score(asks, options)

    def check_health(self) -> None:
        self._replica.check()


class ServeBackend:
    """The models' deployments."""

    def __init__(self, models: Sequence[ModelFacts], handles: Sequence[DeploymentHandle]):
        self.models = {facts.name: facts for facts in models}
        self._handles = dict(zip(self.models, handles, strict=True))

    async def score(self, model: str, asks: Sequence[Ask | Conversation], options: Options) -> Scored:
        handle = self._handles[model].options(session_id=session_of(asks[0]))
        # By the context Serve takes all questions of one HTTP request for one, and its router forgets all but the last
        # of those that wait with it for a replica: nobody would ever answer a search that asks many at a time.
        outcome = await ask_replica(lambda: Context().run(handle.score.remote, asks, options))
        assert isinstance(outcome, Scored)
        return outcome

    async def num_ready(self) -> dict[str, int]:
        status = await asyncio.to_thread(serve.status)
        deployments = status.applications[APP_NAME].deployments
        names = {model: deployment_name(number) for number, model in enumerate(self.models)}
        return {model: deployments[name].replica_states.get("RUNNING", 0) for model, name in names.items()}


@dataclass(frozen=True)
class IngressSettings:
    """What the ingress has to know; checked on the driver."""

    models: list[ModelFacts]
    section: ServeSection
    answer_pattern: str | None = None
    prompt: PromptSection = field(default_factory=PromptSection)
    search: SearchSection = field(default_factory=SearchSection)
    reads_tokens: frozenset[str] = frozenset()
    """Models that read the token ids of the application's own generator."""
    judge: str = "math"
    """Of the run, as whose answers candidates vote."""


class Ingress:
    """Checks and shapes requests; holds no model."""

    def __init__(
        self, settings: IngressSettings, scorers: list[DeploymentHandle], generator: DeploymentHandle | None = None
    ):
        log_through_serve()
        self._settings, self._scorers, self._generator = settings, scorers, generator
        self._traffic = Traffic()

    def __serve_build_asgi_app__(self) -> FastAPI:
        section = self._settings.section
        api = make_api(
            ServeBackend(self._settings.models, self._scorers),
            RequestLimits(section.max_candidates, section.timeout_seconds),
            self._gateway(),
        )
        limits = GuardLimits(int(section.max_body_mb * 2**20), section.body_timeout_seconds)
        keys = None if section.api_keys_file is None else KeyRing(section.api_keys_file)
        api.add_middleware(Guard, limits=limits, keys=keys, sends_request_id=False, traffic=self._traffic)
        self._traces = make_traces(section.otlp_endpoint)
        watch(api, section.log_requests, section.log_text, self._traces)
        return api

    async def drain(self) -> None:
        """Refuse new requests; returns when all that were let in have their answers."""
        await self._traffic.drain()

    def __del__(self) -> None:
        """Serve calls it when the replica stops."""
        if (traces := getattr(self, "_traces", None)) is not None:
            traces.close()

    def _gateway(self) -> Gateway | None:
        section = self._settings.section
        if section.generator is None:
            return None
        own = None if self._generator is None else DeploymentGenerator(self._generator)
        generator: Generator = own or HttpGenerator(
            section.generator, os.environ.get(section.generator_key_env), section.generator_model
        )
        return Gateway(
            generator,
            section.best_of,
            self._settings.answer_pattern,
            section.generator_timeout_seconds,
            self._settings.prompt,
            own,
            self._settings.reads_tokens,
            self._settings.search,
            self._settings.judge,
        )


def deployment_name(number: int) -> str:
    return f"ScorerReplica{number}"


def build(config: RunConfig) -> serve.Application:
    """The application graph: ingress -> replicas of each model, and of the generator if it has one of its own.

    Raises `UserError` for what `served_models` and `generator_options` find wrong.
    """
    section = config.serve
    models = served_models(config)
    scorers = [
        scorer_deployment(section, number).bind(*_replica_arguments(section, model))
        for number, model in enumerate(models)
    ]
    settings = IngressSettings(
        [model.facts for model in models],
        section,
        config.label.answer_pattern,
        config.prompt,
        config.search,
        judge=config.label.judge,
    )
    if section.generator != "vllm":
        return bind_ingress(settings, scorers)
    options = generator_options(config)
    reading = frozenset(model.facts.name for model in models if reads_tokens_of(model, options.model))
    return bind_ingress(replace(settings, reads_tokens=reading), scorers, generator_deployment(config, options))


def bind_ingress(settings: IngressSettings, scorers: list[Any], generator: Any = None) -> serve.Application:
    """`scorers` are bound deployments with the methods of `ScorerReplica`, in the order of the settings' models."""
    return ingress_deployment(settings.section).bind(settings, scorers, generator)


def ingress_deployment(section: ServeSection) -> Any:
    room = section.max_ongoing_requests
    return serve.deployment(
        name="Ingress",
        num_replicas=1,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        max_ongoing_requests=room,
        max_queued_requests=room,
        graceful_shutdown_timeout_s=seconds_to_answer(section),
        max_surge_percent=100,  # while it is replaced, the old one answers
        max_constructor_retry_count=STARTS,
    )(serve.ingress()(Ingress))


def from_settings(settings: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose `args` are the sections of a run's config."""
    return build(parse_config(settings))


def scorer_deployment(section: ServeSection, number: int, replica: type = ScorerReplica) -> Any:
    scaling: dict[str, Any] = {"num_replicas": section.num_replicas}
    if section.max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=section.num_replicas, max_replicas=section.max_replicas
            )
        }
    return serve.deployment(
        name=deployment_name(number),
        ray_actor_options={"num_cpus": 1, "num_gpus": section.gpus_per_replica},
        max_ongoing_requests=section.max_ongoing_requests,
        max_queued_requests=section.max_ongoing_requests,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        graceful_shutdown_timeout_s=section.timeout_seconds,
        max_surge_percent=50,
        max_constructor_retry_count=STARTS * (section.max_replicas or section.num_replicas),
        **scaling,
    )(replica)


def _replica_arguments(section: ServeSection, model: ServedModel) -> tuple[ServedModel, Limits, int]:
    limits = Limits(section.max_tokens, section.max_queued_tokens, model.token_budget)
    return model, limits, section.max_replicas or section.num_replicas
