"""Best-of-N: N whole responses, each scored as soon as it has ended; which of them is the answer, `picking` says."""

from __future__ import annotations

from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch


async def best_of_n(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    return await search.grow(search.root, plan.size, whole=True)
