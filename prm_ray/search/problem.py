"""One problem while it is searched: strategies grow its candidates; who generates and who scores is not their matter.

A strategy is a coroutine over a `ProblemSearch`. It says what to continue and what to drop, and awaits. Whatever it
awaits together is asked for together, so it need not know how many generators there are.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from prm_ray.search.candidate import ROOT, Candidate, Draw, Proposal, Reward

Result = TypeVar("Result")


class Propose(Protocol):
    """Continues a candidate of the problem. What cannot be continued is a proposal with an error."""

    async def __call__(self, start: Candidate, draw: Draw) -> Proposal: ...


class Score(Protocol):
    """Scores a candidate of the problem. What cannot be scored is a reward with an error."""

    async def __call__(self, candidate: Candidate) -> Reward: ...


class ProblemSearch:
    """The candidates of one problem, and how they grow."""

    def __init__(
        self,
        propose: Propose,
        score: Score,
        find_answer: Callable[[str], str | None] = lambda text: text.strip() or None,
        seed: int = 0,
    ):
        self.root = Candidate(ROOT, None)
        self.candidates: list[Candidate] = []
        """All that were ever proposed, in that order, those with an error too."""
        self.rng = random.Random(seed)
        """For what a strategy decides by chance, at points that do not depend on who was faster."""
        self._seeds, self._num_drawn = {ROOT: seed}, Counter[int]()
        self._propose, self._score, self._find_answer = propose, score, find_answer

    @property
    def ended(self) -> list[Candidate]:
        """Those that can be an answer."""
        return [candidate for candidate in self.candidates if candidate.has_ended and candidate.value is not None]

    @property
    def num_sampled(self) -> int:
        """Tokens drawn so far."""
        return sum(candidate.num_sampled for candidate in self.candidates)

    def parent(self, candidate: Candidate) -> Candidate:
        """The candidate that this one continues."""
        assert candidate.parent is not None, "the root has no parent"
        return self.root if candidate.parent == ROOT else self.candidates[candidate.parent]

    async def grow(self, start: Candidate, count: int, whole: bool = False) -> list[Candidate]:
        """`count` continuations of an open candidate, each scored as soon as it is there.

        Those that failed are left out; they stay in `candidates` with their reasons.
        """
        grown = await gather(*(self.grow_one(start, whole) for _ in range(count)))
        return [candidate for candidate in grown if candidate is not None]

    async def grow_one(self, start: Candidate, whole: bool = False, greedy: bool = False) -> Candidate | None:
        """One continuation, scored; None if that failed."""
        assert start.is_open, f"candidate {start.number} has ended and cannot be continued"
        draw = Draw(whole, greedy, self._next_seed(start))
        candidate = self._add(start, await self._propose(start, draw))
        self._seeds[candidate.number] = draw.seed
        return None if candidate.error else await self._reward(candidate)

    def _next_seed(self, start: Candidate) -> int:
        """It depends on which continuation of which candidate this is, not on what others do meanwhile and how fast.
        So subtrees that never wait for each other still give the same texts every time."""
        self._num_drawn[start.number] += 1
        return random.Random(f"{self._seeds[start.number]}/{self._num_drawn[start.number]}").getrandbits(31)

    def _add(self, start: Candidate, proposal: Proposal) -> Candidate:
        error = proposal.error
        if error is None and not proposal.tokens:
            error = "empty_response: the generator gave no token"
        candidate = Candidate(
            number=len(self.candidates),
            parent=start.number,
            tokens=(*start.tokens, *proposal.tokens),
            text=proposal.text,
            finish_reason=proposal.finish_reason,
            num_sampled=proposal.num_sampled,
            answer=self._find_answer(proposal.text) if proposal.finish_reason and error is None else None,
            error=error,
        )
        self.candidates.append(candidate)
        return candidate

    async def _reward(self, candidate: Candidate) -> Candidate | None:
        reward = await self._score(candidate)
        error = reward.error
        if error is None and (reward.value is None or not math.isfinite(reward.value)):
            error = f"no_reward: the reward is {reward.value}"
        scored = replace(
            candidate,
            step_rewards=reward.step_rewards,
            step_ends=reward.step_ends,
            value=reward.value,
            error=error,
        )
        self.candidates[candidate.number] = scored
        return None if error else scored


async def gather(*work: Awaitable[Result]) -> list[Result]:
    """Results of what is done at the same time; if one fails, the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
