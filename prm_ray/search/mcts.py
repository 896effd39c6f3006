"""Monte Carlo tree search with the PRM's values in place of random rollouts; as in AlphaZero-like searches with
language models (Feng et al. 2023, arXiv 2309.17179; Zhang et al. 2024, arXiv 2406.03816).

A descent chooses a leaf by PUCT (`tree`), and its expansion is `plan.expand` continuations by one step, each of which
has its PRM value as soon as it is scored. Decided here, and why:

- The *maximum* is backed up, over what can still be expanded, in place of the mean. The answer is one response, so a
  prefix is worth what its best continuation is; a mean would hold against a good prefix that the generator mostly fails
  to continue it well. Once a node is expanded its own value no longer counts: a step that looked good and leads nowhere
  is left at the next descent. The price is optimism: one continuation that the PRM overrates keeps drawing descents
  until it is expanded.
- Responses that have ended are kept as possible answers and draw no descents.
- `plan.descents` leaves are expanded at the same time, and the next are chosen when all of them are back. Choosing as
  each comes back would make the tree depend on who was faster; the engines are kept busy by other problems meanwhile.

`plan.size` expansions in all, fewer if the tree has no open leaf left. If no response has ended by then, the best open
leaves are written to their ends, `plan.expand` at a time, so that there is an answer.
"""

from __future__ import annotations

from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch, gather
from prm_ray.search.tree import Tree


async def mcts(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    tree = Tree(search.root, plan.exploration)
    ended: list[Candidate] = []
    left = plan.size
    while left and tree.can_grow:
        leaves = tree.take(min(plan.descents, left))
        left -= len(leaves)
        expansions = await gather(*(search.grow(leaf.candidate, plan.expand) for leaf in leaves))
        for leaf, continuations in zip(leaves, expansions, strict=True):
            tree.add(leaf, continuations)
            ended += [candidate for candidate in continuations if candidate.has_ended]
    return ended or await _finish(search, tree.open_leaves(), plan.expand)


async def _finish(search: ProblemSearch, leaves: list[Candidate], at_a_time: int) -> list[Candidate]:
    """The first responses that come to an end, from the best leaves down; none if every continuation fails."""
    for first in range(0, len(leaves), at_a_time):
        tried = leaves[first : first + at_a_time]
        finished = await gather(*(search.grow_one(leaf, whole=True) for leaf in tried))
        if ended := [candidate for candidate in finished if candidate is not None]:
            return ended
    return []
