"""Worlds for searches, small enough that the right behaviour can be worked out by hand. A step is a character."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from prm_ray.search.candidate import Candidate, Draw, Proposal, Reward
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.strategies import STRATEGIES


@dataclass
class World:
    """Steps are drawn from `letters` (greedy: the first of them) until a response has `length` of them, or writes ".",
    which ends it. A subclass or a test says what a text is worth."""

    worth: Callable[[str], float]
    letters: str = "01"
    length: int = 3
    fails: Callable[[str], str | None] = lambda text: None
    """Of a text that a generator would give: None, or how it fails: "error", "empty", "no reward", "nan"."""
    speed: random.Random | None = None
    """Makes everything take a few turns of the event loop, a random number of them."""
    asked: list[tuple[str, Draw]] = field(default_factory=list)
    """What the generator was asked to continue, in that order."""

    def step(self, text: str, draw: Draw, rng: random.Random) -> str:
        return self.letters[0] if draw.greedy else rng.choice(self.letters)

    def is_over(self, text: str) -> bool:
        return text.endswith(".")

    async def propose(self, start: Candidate, draw: Draw) -> Proposal:
        self.asked.append((start.text, draw))
        await self._dawdle()
        rng = random.Random(draw.seed)
        text = start.text + self.step(start.text, draw, rng)
        while draw.whole and not self.is_over(text) and len(text) < self.length:
            text += self.step(text, draw, rng)
        if (failure := self.fails(text)) in ("error", "empty"):
            return Proposal(error="broken: the generator died" if failure == "error" else None)
        tokens = tuple(ord(letter) for letter in text[len(start.text) :])
        finish = "stop" if self.is_over(text) else "length" if len(text) >= self.length else None
        return Proposal(tokens, text, finish, num_sampled=len(tokens))

    async def score(self, candidate: Candidate) -> Reward:
        await self._dawdle()
        if (failure := self.fails(candidate.text)) == "no reward":
            return Reward(error="broken: the scorer died")
        value = float("nan") if failure == "nan" else self.worth(candidate.text)
        return Reward((value,), value)

    async def _dawdle(self) -> None:
        for _ in range(self.speed.randrange(4) if self.speed else 0):
            await asyncio.sleep(0)

    def search(self, seed: int = 0) -> ProblemSearch:
        return ProblemSearch(self.propose, self.score, seed=seed)


@dataclass
class ScriptedWorld(World):
    """The k-th time that a text is continued, its k-th child is given, over and over; greedy gives the first.

    `children` maps a text to the letters that may follow; a text that is not in it has ended. `values` has what
    texts are worth, 0 where it says nothing.
    """

    worth: Callable[[str], float] = lambda text: 0.0
    length: int = 1_000
    children: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.worth = lambda text: self.values.get(text, 0.0)

    def step(self, text: str, draw: Draw, rng: random.Random) -> str:
        letters = self.children[text]
        if draw.greedy or draw.whole:
            return letters[0]
        self.times[text] += 1
        return letters[(self.times[text] - 1) % len(letters)]

    def is_over(self, text: str) -> bool:
        return text not in self.children


def searched(strategy: str, search: ProblemSearch, plan: Plan) -> list[Candidate]:
    """The strategy's result; one that waits for ever fails the test."""
    return finished(STRATEGIES[strategy](search, plan))  # type: ignore[arg-type]


def finished(work: Coroutine[Any, Any, list[Candidate]]) -> list[Candidate]:
    async def within_seconds() -> list[Candidate]:
        return await asyncio.wait_for(work, timeout=300)

    return asyncio.run(within_seconds())


def texts(candidates: list[Candidate]) -> list[str]:
    return [candidate.text for candidate in candidates]


def leading_ones(text: str) -> float:
    return len(text) - len(text.lstrip("1"))


def hash_of(text: str) -> int:
    """A value between 0 and 100 that looks like chance, the same in every process."""
    return random.Random(text).randrange(100)
