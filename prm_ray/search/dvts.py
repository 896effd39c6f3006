"""Diverse verifier tree search: independent greedy subtrees. Beeching, Tunstall, Rush 2024, "Scaling test-time compute
with open models" (Hugging Face), and search-and-learn.

A subtree is a beam search of width 1 with first steps of its own, so a PRM that likes one first step too much spoils
one subtree and not the search. Differently from search-and-learn, subtrees never wait for each other (there all take a
step, then all are scored), and what is returned are the responses that ended, not whatever the last step was. Two
subtrees may hold the same text: were one to turn away from it, they would depend on each other.
"""

from __future__ import annotations

from prm_ray.search.beam import grow_frontier, itself
from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch, gather


async def dvts(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    subtrees = await gather(*(grow_frontier(search, 1, plan.expand, itself) for _ in range(plan.width)))
    return [candidate for ended in subtrees for candidate in ended]
