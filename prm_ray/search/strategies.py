"""The strategies by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prm_ray.search.adaptive import adaptive_n
from prm_ray.search.beam import beam
from prm_ray.search.best_of_n import best_of_n
from prm_ray.search.candidate import Candidate
from prm_ray.search.dvts import dvts
from prm_ray.search.lookahead import lookahead
from prm_ray.search.mcts import mcts
from prm_ray.search.particles import particles
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.rejection import Rejection, best_of_n_rejecting

Strategy = Callable[[ProblemSearch, Plan], Awaitable[list[Candidate]]]
"""Grows candidates, and gives those that have ended and compete for the answer, each once."""


async def adaptive(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    return await adaptive_n(search, plan, plan.adaptive, plan.budget)


async def rejection(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    return await best_of_n_rejecting(search, plan, Rejection(plan.reject_below))


async def adaptive_rejection(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    return await adaptive_n(search, plan, plan.adaptive, plan.budget, Rejection(plan.reject_below).sample)


STRATEGIES: dict[str, Strategy] = {
    "best_of_n": best_of_n,
    "adaptive": adaptive,
    "rejection": rejection,
    "adaptive_rejection": adaptive_rejection,
    "beam": beam,
    "dvts": dvts,
    "lookahead": lookahead,
    "particles": particles,
    "mcts": mcts,
}
REJECTING = ("rejection", "adaptive_rejection")
"""Strategies that need `Plan.reject_below`."""
ADAPTIVE = ("adaptive", "adaptive_rejection")
"""Strategies that heed `Plan.budget`."""

KEEP_BEAMS = ("beam", "dvts", "lookahead")
"""Those whose plan's size must be a multiple of its `expand`."""
