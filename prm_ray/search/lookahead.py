"""Lookahead search: Snell et al. 2024 (arXiv 2408.03314), section 5.2. Beam search in which a candidate ranks by the
value it has `plan.lookahead` greedy steps later, so a step that looks good and leads nowhere is left out in time.

The steps that were looked at leave the beam but stay among the search's candidates with their tokens: lookahead costs
`1 + plan.lookahead` times a beam search of the same width, and who compares them must see that. Differently from the
paper, a response that ended while looking ahead may be the answer too, as it is whole, scored and paid for.
"""

from __future__ import annotations

from prm_ray.search.beam import grow_frontier
from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch


async def lookahead(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    async def foresee(candidate: Candidate) -> Candidate | None:
        """What greedy steps make of it. Each candidate looks ahead as soon as it is there; it waits for no other."""
        ahead: Candidate | None = candidate
        for _ in range(plan.lookahead):
            if ahead is None or not ahead.is_open:
                break
            ahead = await search.grow_one(ahead, greedy=True)
        return ahead

    return await grow_frontier(search, plan.width, plan.expand, foresee)
