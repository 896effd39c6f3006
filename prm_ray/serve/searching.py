"""A chat completion by a strategy of `search/`: who generates and who scores while it runs, and when it ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from prm_ray.scoring.asks import Ask, Cost, Item, ModelFacts, Problem, Refusal, RefusedError, Response, Scored
from prm_ray.search.candidate import Candidate, Draw, Proposal, Reward
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.strategies import STRATEGIES
from prm_ray.serve.asking import Asking
from prm_ray.serve.generator import Candidate as Answer
from prm_ray.serve.generator import Generated
from prm_ray.serve.requestrecord import current_record
from prm_ray.serve.steps import Continuing, WholeResponses

_MAX_PROBLEMS = 10
"""Reasons that a reply lists."""


@dataclass(frozen=True)
class Wanted:
    """One request's search."""

    strategy: str
    plan: Plan
    problem: Problem
    """As the reward model reads it."""
    body: dict[str, Any]
    """For the generator."""
    aggregation: str
    """How step rewards become the value that is searched by."""


@dataclass(frozen=True)
class Found:
    """Responses that have ended, and their rewards."""

    generated: Generated
    scored: Scored
    num_drawn: int
    """Continuations, of which the responses are made and those that were dropped."""


async def search(ask: Asking, facts: ModelFacts, wanted: Wanted) -> Found:
    """Whatever has ended within the gateway's time. Raises `RefusedError` if nothing has."""
    seconds = ask.gateway().timeout_seconds
    running: _Running | None = None
    ended: list[Candidate] = []
    problems: list[str] = []
    with current_record().generating() as generation:
        try:
            async with asyncio.timeout(seconds):
                running = _Running(ask, facts, wanted, await _begin(ask, facts, wanted))
                ended = await STRATEGIES[wanted.strategy](running.search, wanted.plan)
        except TimeoutError:
            problems = [f"the search took longer than {seconds:g} s; these responses had ended by then"]
            ended = [] if running is None else running.search.ended
        if running is None or not ended:
            late = Refusal(504, "generator_timeout", f"no response has ended within {seconds:g} s", 1)
            raise RefusedError(late if running is None or problems else running.reason())
        found = running.found(ended, problems)
        generation.model, generation.num_candidates = found.generated.model, len(found.generated.candidates)
        generation.prompt_tokens = found.generated.prompt_tokens
        generation.completion_tokens = found.generated.completion_tokens
    return found


async def _begin(ask: Asking, facts: ModelFacts, wanted: Wanted) -> Continuing:
    gateway = ask.gateway()
    if gateway.steps is not None:
        return await gateway.steps.begin(wanted.body, facts.step_rule)
    return WholeResponses(gateway.generator, wanted.body, gateway.timeout_seconds)


class _Running:
    """A search between its generator and its reward model, and what it has cost."""

    def __init__(self, ask: Asking, facts: ModelFacts, wanted: Wanted, continuing: Continuing):
        self._ask, self._facts, self._wanted, self._continuing = ask, facts, wanted, continuing
        self._by_tokens = continuing.has_tokens and facts.name in ask.gateway().reads_tokens
        # no search costs more than the largest best-of-N that this server does
        longest = continuing.max_tokens
        self._budget = None if longest is None else longest * ask.max_candidates
        self._is_spent = False
        self._items: dict[int, Item] = {}
        self._costs: list[Cost] = []
        self._refusals: list[Refusal] = []
        seed = wanted.body.get("seed")
        self.search = ProblemSearch(
            self._propose,
            self._score,
            ask.gateway().find_answer,
            seed if isinstance(seed, int) else random.getrandbits(31),
        )

    async def _propose(self, start: Candidate, draw: Draw) -> Proposal:
        if self._budget is not None and self.search.num_sampled >= self._budget:
            self._is_spent = True
            return Proposal(error=self._spent)
        try:
            proposal = await self._continuing(start, draw)
        except RefusedError as error:
            if error.refusal.status < 500 and not self.search.ended:
                raise  # the client's own mistake, at which the next draw would fail too
            self._refusals.append(error.refusal)
            return Proposal(error=error.refusal.message)
        if proposal.error is None and proposal.finish_reason and not proposal.text.strip():
            return replace(proposal, error="the generator gave a response without any text")
        return proposal

    async def _score(self, candidate: Candidate) -> Reward:
        response: Response = list(candidate.tokens) if self._by_tokens else candidate.text
        try:
            scored = await self._score_patiently(Ask(self._wanted.problem, [response], is_open=candidate.is_open))
        except RefusedError as error:
            self._refusals.append(error.refusal)
            return Reward(error=error.refusal.message)
        ((item,),) = scored.items
        self._costs.append(scored.cost)
        if item.failure is not None:
            return Reward(error=item.failure.message)
        self._items[candidate.number] = item
        return Reward(tuple(item.step_rewards), item.rewards[self._wanted.aggregation])

    async def _score_patiently(self, ask: Ask) -> Scored:
        """A full queue ends no search that has begun: it waits, as long as it has time."""
        while True:
            try:
                return await self._ask.score(self._facts, [ask])
            except RefusedError as error:
                if error.refusal.status != 429:
                    raise
                await asyncio.sleep(error.refusal.retry_after or 1)

    @property
    def _spent(self) -> str:
        return f"no more tokens after {self._budget}, the most that a search may sample here"

    def reason(self) -> Refusal:
        """Why nothing has ended."""
        if self._is_spent:
            return Refusal(413, "too_many_tokens", f"no response has ended; {self._spent}")
        if self._refusals:
            return self._refusals[0]
        reasons = "; ".join(self._problems()) or "no candidate was drawn"
        return Refusal(502, "bad_generator", f"no response has ended: {reasons}")

    def _problems(self) -> list[str]:
        reasons = dict.fromkeys(each.error for each in self.search.candidates if each.error is not None)
        return list(reasons)[:_MAX_PROBLEMS]

    def found(self, ended: Iterable[Candidate], problems: list[str]) -> Found:
        ended = list({candidate.number: candidate for candidate in ended}.values())
        answers = [Answer(candidate.text, candidate.finish_reason or "stop") for candidate in ended]
        generated = Generated(
            answers,
            self._continuing.model,
            self._continuing.prompt_tokens,
            self.search.num_sampled,
            [*problems, *self._problems()],
        )
        cost = Cost(sum(cost.prompt_tokens for cost in self._costs), sum(cost.response_tokens for cost in self._costs))
        scored = Scored([[self._items[candidate.number] for candidate in ended]], cost)
        return Found(generated, scored, len(self.search.candidates))
