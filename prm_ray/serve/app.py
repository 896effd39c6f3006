"""The Serve application: a cheap FastAPI ingress in front of replicas that hold the model.

The replica runs one forward pass at a time in a thread, so that its event loop keeps answering health checks. Its queue
is bounded: a request that does not fit is answered 503 with Retry-After at once instead of waiting without end.
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.scorer import Scorer
from prm_ray.serve.protocol import (
    ItemError,
    RerankReply,
    RerankRequest,
    ScoredItem,
    ScoreReply,
    ScoreRequest,
    Usage,
    error_body,
    rank,
    validation_message,
)
from prm_ray.stages.cluster import set_threads

APP_NAME = "prm_ray"
RETRY_AFTER_SECONDS = 2
_ONGOING_PER_REPLICA = 4
"""One in the forward pass, the others being received or sent: the model never waits for the network."""


@dataclass(frozen=True)
class Rejection:
    """Why a replica did not score a request; a value, since an exception would cross processes as a traceback."""

    status: int
    kind: str
    message: str


@dataclass(frozen=True)
class Scored:
    items: list[ScoredItem]
    usage: Usage


@dataclass(frozen=True)
class Limits:
    max_candidates: int
    max_tokens: int


class ScorerReplica:
    """One model in memory."""

    def __init__(self, checkpoint: str, config: RunConfig):
        set_threads(config.serve.num_replicas)
        self._scorer = Scorer.from_pretrained(
            checkpoint,
            dtype=config.model.dtype,
            token_budget=config.score.token_budget,
        )
        self._max_tokens = config.serve.max_tokens
        # One thread, not a lock: a client that hangs up cancels the waiting, but never lets two passes run at once.
        self._forward = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")

    async def score(self, prompt: str | list[dict[str, str]], responses: list[str]) -> Scored | Rejection:
        return await asyncio.get_running_loop().run_in_executor(self._forward, self._score, prompt, responses)

    def _score(self, prompt: str | list[dict[str, str]], responses: list[str]) -> Scored | Rejection:
        filled = [(index, text) for index, text in enumerate(responses) if text.strip()]
        texts = [text for _, text in filled]
        try:
            total_tokens = self._scorer.count_tokens(prompt, texts)
            if rejection := self._too_long(prompt, texts, total_tokens):
                return rejection
            scored = self._scorer.score(prompt, texts) if texts else []
        except UserError as error:
            return Rejection(422, "invalid_request", str(error))
        empty = ItemError(type="empty_response", message="the response has no text")
        items = [ScoredItem(index=index, error=empty) for index in range(len(responses))]
        for (index, _), response in zip(filled, scored, strict=True):
            items[index] = ScoredItem(
                index=index,
                rewards=response.rewards,
                step_rewards=response.step_rewards,
                steps=response.steps,
                num_tokens=len(response.token_rewards),
            )
        num_response_tokens = sum(item.num_tokens for item in items)
        return Scored(items, Usage(prompt_tokens=total_tokens - num_response_tokens, total_tokens=total_tokens))

    def _too_long(self, prompt: str | list[dict[str, str]], texts: list[str], total_tokens: int) -> Rejection | None:
        """More than the server's limit in all, or one response that the model cannot read behind the prompt."""
        if total_tokens > self._max_tokens:
            message = f"prompt and responses have {total_tokens} tokens, at most {self._max_tokens} are allowed"
            return Rejection(413, "too_many_tokens", message)
        context: int | None = getattr(self._scorer.policy.config, "max_position_embeddings", None)
        if context is None or total_tokens <= context:
            return None
        for text in texts:
            if (num_tokens := self._scorer.count_tokens(prompt, [text])) > context:
                message = f"the prompt and one response have {num_tokens} tokens, the model reads at most {context}"
                return Rejection(413, "too_many_tokens", message)
        return None


api = FastAPI(title="prm_ray", description="Rewards of a process reward model, for each step and each response.")


@api.exception_handler(RequestValidationError)
async def _answer_422(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse(error_body("invalid_request", validation_message(list(error.errors()))), status_code=422)


class Refused(Exception):
    """A reply other than 200; FastAPI turns it into JSON."""

    def __init__(self, rejection: Rejection):
        super().__init__(rejection)
        self.rejection = rejection


@api.exception_handler(Refused)
async def _answer_refused(request: Request, error: Refused) -> JSONResponse:
    rejection = error.rejection
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if rejection.status == 503 else None
    return JSONResponse(error_body(rejection.kind, rejection.message), status_code=rejection.status, headers=headers)


# Above the class: `serve.ingress` copies the app, with the globals its functions see, at the moment it decorates.
def _id(request: ScoreRequest | RerankRequest) -> str:
    return request.request_id or uuid.uuid4().hex


@serve.ingress(api)
class Ingress:
    """Checks and shapes requests; holds no model."""

    def __init__(self, scorer: DeploymentHandle, model: str, aggregation: Any, limits: Limits):
        self._scorer = scorer
        self._model = model
        self._aggregation = aggregation
        self._limits = limits

    @api.post("/score")
    async def score(self, request: ScoreRequest) -> ScoreReply:
        scored = await self._scored(request.prompt(), request.responses)
        return ScoreReply(id=_id(request), model=self._model, usage=scored.usage, results=scored.items)

    @api.post("/rerank")
    async def rerank(self, request: RerankRequest) -> RerankReply:
        scored = await self._scored(request.prompt(), request.responses())
        aggregation = request.aggregation or self._aggregation
        return RerankReply(
            id=_id(request),
            model=self._model,
            aggregation=aggregation,
            usage=scored.usage,
            results=rank(request, scored.items, aggregation),
        )

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        """200 while at least one replica with the model runs, else 503."""
        status = await asyncio.to_thread(serve.status)
        states = status.applications[APP_NAME].deployments["ScorerReplica"].replica_states
        num_running = states.get("RUNNING", 0)
        if not num_running:
            raise Refused(Rejection(503, "unavailable", f"no replica runs: {dict(states)}"))
        return {"status": "ok", "model": self._model, "replicas": num_running}

    async def _scored(self, prompt: str | list[dict[str, str]], responses: list[str]) -> Scored:
        if len(responses) > self._limits.max_candidates:
            message = f"the request has {len(responses)} responses, at most {self._limits.max_candidates} are allowed"
            raise Refused(Rejection(413, "too_many_candidates", message))
        try:
            outcome = await self._scorer.score.remote(prompt, responses)
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise Refused(Rejection(503, "overloaded", f"{error.message} Try again later.")) from None
        except RayActorError:
            raise Refused(Rejection(503, "unavailable", "the replica with the model died; try again later")) from None
        if isinstance(outcome, Rejection):
            raise Refused(outcome)
        return outcome


def build(config: RunConfig, checkpoint: str) -> serve.Application:
    """The application graph: ingress -> replicas with the model of `checkpoint`."""
    section = config.serve
    backpressure = BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_SECONDS)
    scorer = serve.deployment(
        num_replicas=section.num_replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": section.gpus_per_replica},
        max_ongoing_requests=_ONGOING_PER_REPLICA,
        max_queued_requests=section.max_queued_requests,
        backpressure_config=backpressure,
        # A model that does not load does not load the second time either.
        max_constructor_retry_count=1,
    )(ScorerReplica)
    # The ingress must hold more requests than the replicas and their queue, or the surplus would wait before it unseen.
    room = section.max_queued_requests + (section.num_replicas + 1) * _ONGOING_PER_REPLICA + 32
    ingress = serve.deployment(
        num_replicas=1,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=room,
        max_queued_requests=room,
        backpressure_config=backpressure,
        max_constructor_retry_count=1,
    )(Ingress)
    limits = Limits(section.max_candidates, section.max_tokens)
    return ingress.bind(scorer.bind(checkpoint, config), config.run.dir.name, config.aggregation, limits)
