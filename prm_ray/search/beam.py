"""Beam search over steps, ranked by the PRM: Snell et al. 2024 (arXiv 2408.03314), section 5.2; Hugging Face's
search-and-learn is the implementation that most results come from.

What is done differently, and why:

- A response that has ended keeps its place: it competes with open ones by value and is not continued. search-and-learn
  takes it out of the competition and fills its place up with copies, so weak beams go on because a strong one is done.
- Every response that ended is returned, once, also one that fell out of the frontier: it is paid for. search-and-learn
  repeats those it has until they are `n`, which counts the votes of a few several times.
- Beams with the same tokens hold one place (its option `filter_duplicates`, here always): a confident model writes the
  same short step many times, and the frontier would be one beam. The `expand` continuations of a beam are drawn
  independently, so a second copy would add draws but no other way to go on. The price: a round may have fewer than
  `size` continuations, and a good beam never gets more than `expand` of them.
- No batch of one: all beams are continued at the same time, and each continuation is scored when it is there.

A beam all of whose continuations failed drops out; if none is left, the search ends with what has ended so far.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from prm_ray.search.candidate import Candidate, distinct
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch, gather

Foresee = Callable[[Candidate], Awaitable[Candidate | None]]
"""The candidate by whose value another one ranks; None = that could not be found out."""


class Beam(NamedTuple):
    """A candidate in the frontier, and by whose value it ranks: its own, or that of one further on."""

    candidate: Candidate
    foreseen: Candidate | None

    @property
    def rank(self) -> float:
        """A beam about which the foresight failed comes last: a failure must not rank above what is known."""
        return -math.inf if self.foreseen is None else self.foreseen.worth()


async def beam(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    return await grow_frontier(search, plan.width, plan.expand, itself)


async def itself(candidate: Candidate) -> Candidate:
    return candidate


async def grow_frontier(search: ProblemSearch, width: int, expand: int, foresee: Foresee) -> list[Candidate]:
    """Rounds until the whole frontier of `width` beams has ended. The first one is `width * expand` first steps."""
    found = await _continue(search, search.root, width * expand, foresee)
    ended, frontier = _ended(found), _best(found, width)
    while still_open := [held.candidate for held in frontier if held.candidate.is_open]:
        grown = await gather(*(_continue(search, candidate, expand, foresee) for candidate in still_open))
        found = [new for continuations in grown for new in continuations]
        ended |= _ended(found)
        frontier = _best([held for held in frontier if held.candidate.has_ended] + found, width)
    return list(ended.values())


async def _continue(search: ProblemSearch, start: Candidate, count: int, foresee: Foresee) -> list[Beam]:
    async def one() -> Beam | None:
        candidate = await search.grow_one(start)
        return None if candidate is None else Beam(candidate, await foresee(candidate))

    return [new for new in await gather(*(one() for _ in range(count))) if new is not None]


def _best(beams: list[Beam], width: int) -> list[Beam]:
    """The `width` best, no two with the same tokens. Of equals those that came first, so that runs repeat."""
    ranked = sorted(beams, key=lambda each: -each.rank)
    kept = {candidate.number for candidate in distinct(each.candidate for each in ranked)}
    return [each for each in ranked if each.candidate.number in kept][:width]


def _ended(beams: list[Beam]) -> dict[int, Candidate]:
    """All responses among them, those that foresight came upon too, by number."""
    seen = [candidate for each in beams for candidate in each if candidate is not None]
    return {candidate.number: candidate for candidate in seen if candidate.has_ended}
