"""The engines of a search as Ray actors, and how a pool sees them: start, ask, stop, and notice that they died."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from prm_ray.config import RunConfig
from prm_ray.models import load_tokenizer
from prm_ray.scoring.asks import Ask, Item, Options, Refusal
from prm_ray.scoring.replica import Limits, Replica
from prm_ray.scoring.served import ServedModel, load_scorer
from prm_ray.search.candidate import Draw, Proposal, Reward
from prm_ray.search.driver import ContinueJob, ScoreJob
from prm_ray.search.pool import WorkerDiedError
from prm_ray.settings import SearchSection
from prm_ray.stages.cluster import Wanted
from prm_ray.stages.continuing import Continuer
from prm_ray.stages.gpus import keep_to_own_gpus
from prm_ray.stages.pipeline import known_cause
from prm_ray.stages.sampling import SamplerOptions
from prm_ray.stages.threads import Threads

_GPU_MARGIN = 0.9
"""Of an engine's share of a GPU: the rest is for what vLLM does not count."""
_TOKENS_OF_A_PASS = 2048
"""Of vLLM, unless its `max_num_batched_tokens` says otherwise."""
_STOP_SECONDS = 20.0
_CPUS = 1
_NO_LIMIT = 2**62


class GeneratorActor:
    """One engine."""

    def __init__(self, config: RunConfig, options: SamplerOptions, step_rule: str):
        keep_to_own_gpus()
        tokenizer = load_tokenizer(options.model, config.prompt.chat_template, options.trust_remote_code)
        self._continuer = Continuer(options, tokenizer, step_rule)

    async def ready(self) -> None:
        pass

    async def run(self, prompt: tuple[int, ...], tokens: tuple[int, ...], text: str, draw: Draw) -> Proposal:
        return await self._continuer(prompt, tokens, text, draw)

    async def close(self) -> None:
        self._continuer.close()


class ScorerActor:
    """One reward model; what is asked together becomes batches of its token budget."""

    def __init__(self, model: ServedModel, aggregation: str, threads: Threads | None):
        keep_to_own_gpus()
        limits = Limits(_NO_LIMIT, _NO_LIMIT, model.token_budget)
        self._replica = Replica(load_scorer(model), limits, num_threads=threads.count() if threads else None)
        self._aggregation = aggregation

    async def ready(self) -> None:
        pass

    async def run(self, asked: list[Ask]) -> list[Reward]:
        """Each is of one response."""
        scored = await self._replica.score(asked, Options())
        if isinstance(scored, Refusal):
            return [Reward(error=f"{scored.kind}: {scored.message}")] * len(asked)
        return [self._reward(item) for (item,) in scored.items]

    def _reward(self, item: Item) -> Reward:
        if item.failure is not None:
            return Reward(error=f"{item.failure.kind}: {item.failure.message}")
        value = item.rewards[self._aggregation]
        return Reward(tuple(item.step_rewards), value, step_ends=tuple(item.step_ends))

    async def close(self) -> None:
        await self._replica.close()


@dataclass
class _Together:
    """What one call asks."""

    asked: list[Ask] = field(default_factory=list)
    answers: asyncio.Future[list[Reward]] = field(init=False)


class _ActorWorker:
    """An actor that can be started anew."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._actor: Any = None

    async def start(self) -> None:
        self._actor = self._make()
        try:
            await self._actor.ready.remote()
        except RayActorError as error:
            raise known_cause(error) or WorkerDiedError(first_cause(error)) from None

    async def ask(self, *arguments: Any) -> Any:
        try:
            return await self._actor.run.remote(*arguments)
        except RayActorError as error:
            raise WorkerDiedError(str(error)) from None

    async def stop(self) -> None:
        if self._actor is None:
            return
        with suppress(RayActorError, TimeoutError):  # it may be dead, or hang: it is killed in any case
            async with asyncio.timeout(_STOP_SECONDS):
                await self._actor.close.remote()
        ray.kill(self._actor)


def first_cause(error: RayActorError) -> str:
    """The last line of the traceback that Ray shows, or its first word on it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b.*: ", line)]
    return (causes or lines or ["no reason is known"])[-1 if causes else 0][:300]


class GeneratorWorker(_ActorWorker):
    async def run(self, job: ContinueJob) -> Proposal:
        return await self.ask(job.unit.prompt, job.start.tokens, job.start.text, job.draw)


class ScorerWorker(_ActorWorker):
    """Jobs of one moment travel together: many are short, and a call takes its time too.

    `by_text`: the reward model has another vocabulary than the generator, or a format of its own, so it reads texts;
    the others get the tokens as they were sampled.
    """

    def __init__(self, make: Callable[[], Any], by_text: bool):
        super().__init__(make)
        self._by_text = by_text
        self._together: _Together | None = None

    async def run(self, job: ScoreJob) -> Reward:
        if self._together is None:
            self._together = _Together()
            self._together.answers = asyncio.ensure_future(self._ask_for(self._together.asked))
        together, number = self._together, len(self._together.asked)
        together.asked.append(self._as_asked(job))
        return (await asyncio.shield(together.answers))[number]

    async def _ask_for(self, asked: list[Ask]) -> list[Reward]:
        """Begins when the loop comes round, so what was asked at this moment is all there."""
        self._together = None
        return await self.ask(asked)

    def _as_asked(self, job: ScoreJob) -> Ask:
        if self._by_text:
            return Ask(job.unit.problem, [job.candidate.text], job.candidate.is_open)
        return Ask(list(job.unit.prompt), [list(job.candidate.tokens)])


def wanted_workers(section: SearchSection) -> list[Wanted]:
    """What must have room together, lest the search wait for ever: one of each kind, as it begins with the first of
    each. But all where both are on GPUs, for the first ones may leave the other kind none; and all generators that
    have a part of a GPU, as those start in turn.
    """
    generators, scorers = section.gpus_per_generator, section.gpus_per_scorer
    all_of_both = bool(generators and scorers)
    kinds = [
        ("generator", generators, section.num_generators if all_of_both or 0 < generators < 1 else 1),
        ("scorer", scorers, section.num_scorers if all_of_both else 1),
    ]
    return [
        Wanted(f"a {kind} of search (search.num_{kind}s, search.gpus_per_{kind})", _CPUS, gpus, number)
        for kind, gpus, number in kinds
    ]


def generator_maker(config: RunConfig, options: SamplerOptions, step_rule: str) -> Callable[[], GeneratorWorker]:
    section = config.search
    options = engine_of(section, options)
    actor = _remote(GeneratorActor, section.gpus_per_generator, section.responses_per_generator)
    return lambda: GeneratorWorker(lambda: actor.remote(config, options, step_rule))


def engine_of(section: SearchSection, options: SamplerOptions) -> SamplerOptions:
    """`options` for one engine of a search; `generate.engine_options` have the last word."""
    share, given = section.gpus_per_generator, options.engine_options
    ours: dict[str, Any] = {}
    if share and options.backend == "vllm":
        # By itself vLLM decodes 128 at once; with more than the tokens of a pass it refuses to start.
        tokens = given.get("max_num_batched_tokens") or _TOKENS_OF_A_PASS
        ours["max_num_seqs"] = min(section.responses_per_generator, tokens)
    if 0 < share < 1:
        ours["gpu_memory_utilization"] = round(share * _GPU_MARGIN, 3)
    return replace(options, num_gpus=math.ceil(share), engine_options=ours | given)


def scorer_maker(config: RunConfig, model: ServedModel, aggregation: str, by_text: bool) -> Callable[[], ScorerWorker]:
    section = config.search
    threads = None if section.gpus_per_scorer else Threads(section.num_scorers)
    actor = _remote(ScorerActor, section.gpus_per_scorer, section.token_budget)
    return lambda: ScorerWorker(lambda: actor.remote(model, aggregation, threads), by_text)


def _remote(actor_class: type, num_gpus: float, most_calls: int) -> Any:
    """Engines that share cores must not wait by spinning: threads of one would keep those of the other from them."""
    environment = {} if num_gpus else {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
    return ray.remote(actor_class).options(
        num_cpus=_CPUS,
        num_gpus=num_gpus,
        max_concurrency=most_calls + 8,
        scheduling_strategy="SPREAD",
        runtime_env=environment,
    )
