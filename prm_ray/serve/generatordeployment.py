"""The application's own generator as a Serve deployment, and how the ingress asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from prm_ray.config import RunConfig
from prm_ray.scoring.asks import Refusal
from prm_ray.search.candidate import Candidate, Draw, Proposal
from prm_ray.serve.deployments import STARTS, ask_replica, log_through_serve
from prm_ray.serve.generation import ChatModel
from prm_ray.serve.generator import Generated, gather_candidates
from prm_ray.serve.steps import Continuing, Opening, StepByStep
from prm_ray.stages.gpus import keep_to_own_gpus
from prm_ray.stages.sampling import SamplerOptions


class GeneratorReplica:
    """`ChatModel` as a Serve deployment."""

    def __init__(self, options: SamplerOptions, name: str, chat_template: Path | None):
        log_through_serve()
        keep_to_own_gpus()
        self._model = ChatModel(options, name, chat_template)

    async def complete(self, body: dict[str, Any]) -> dict[str, Any] | Refusal:
        return await self._model.complete(body)

    async def begin(self, body: dict[str, Any]) -> Opening | Refusal:
        return await self._model.begin(body)

    async def continue_response(self, opening: Opening, step_rule: str, start: Candidate, draw: Draw) -> Proposal:
        return await self._model.continue_response(opening, step_rule, start, draw)


class DeploymentGenerator:
    """Candidates of the application's own language model."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle

    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        return await gather_candidates(self._ask, body, count, seconds)

    async def begin(self, body: dict[str, Any], step_rule: str) -> Continuing:
        opening = await ask_replica(lambda: self._handle.begin.remote(body))
        assert isinstance(opening, Opening)
        return StepByStep(opening, step_rule, self._proceed)

    async def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = await ask_replica(lambda: self._handle.complete.remote(body))
        assert isinstance(reply, dict)
        return reply

    async def _proceed(self, *asked: Any) -> Proposal:
        proposal = await ask_replica(lambda: self._handle.continue_response.remote(*asked))
        assert isinstance(proposal, Proposal)
        return proposal


def generator_deployment(config: RunConfig, options: SamplerOptions) -> Any:
    deployment: Any = serve.deployment(
        name="Generator",
        num_replicas=config.serve.generator_replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": config.generate.gpus_per_engine},
        max_ongoing_requests=config.serve.max_ongoing_requests,
        graceful_shutdown_timeout_s=config.serve.generator_timeout_seconds,
        max_constructor_retry_count=STARTS * config.serve.generator_replicas,
    )(GeneratorReplica)
    return deployment.bind(options, Path(options.model).name, config.prompt.chat_template)
