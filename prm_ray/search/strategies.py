"""The strategies by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prm_ray.search.adaptive import adaptive_n
from prm_ray.search.best_of_n import best_of_n
from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch

Strategy = Callable[[ProblemSearch, Plan], Awaitable[list[Candidate]]]
"""Grows candidates, and gives those that have ended and compete for the answer, each once."""

STRATEGIES: dict[str, Strategy] = {
    "best_of_n": best_of_n,
    "adaptive_n": adaptive_n,
}
