"""Adaptive N: best-of-N that samples in rounds and ends when the answer is settled, on a token budget of all problems.

A problem gets `first` responses, then `step` more at a time until its answer is settled (`settled.py`), it has all N,
or the budget has no more for it (`budget.py`). What easy problems leave goes to those in need.

*Need* of a problem is `Outlook.gain`: draw the responses that are still to come; by how much does the answer that wins
with them beat, in its share of votes, the one that leads now? If the share of votes is the chance of being right, that
is the rise in accuracy that the rest of the responses buys: the value of information (the knowledge gradient of
Frazier, Powell and Dayanik 2009, looking N - n responses ahead). It is small for a settled answer, and small too where
answers scatter so much that a change leads from one poor answer to another; so both stop, though only the first is
settled.

Tried on recorded candidates (240 demo problems x 8, 20 orders, 60 % of their tokens; a vote of all 8 is right on
36.2 %): this need loses 3.0 points, the chance of a change 3.1, even shares 3.9; change or gain within the next round
only, 3.6; divided by the responses left, 3.2 to 3.5; the leader's share, 5.6. At half of the tokens and less there is
nothing in it (even shares 5.0, this 5.1). A need fitted to labelled candidates, with the best value of a problem beside
change, gain and share, loses 2.3, and 3.6 at half: how high values are says which problems are done. That
does not carry over to another model without labels, so it is not built in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_ray.errors import UserError
from prm_ray.search.budget import TokenBudget
from prm_ray.search.candidate import Candidate
from prm_ray.search.picking import Pick
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.settled import Outlook, outlook

Sample = Callable[[ProblemSearch, int], Awaitable[list[Candidate]]]
"""So many more responses; gives those that have ended. What it dropped has no vote, but is one of the N."""

_SHARP = 100.0
"""Standard deviations of the values in which `best` differs from a vote: one response outweighs all below it."""


@dataclass(frozen=True)
class Adaptive:
    """When a problem ends. Defaults are chosen by `benchmarks.adaptive`."""

    first: int = 4
    """Responses before the first look."""
    step: int = 2
    """Responses between looks."""
    error: float = 0.05
    """Share of problems that may end early with another answer than N responses would have given."""
    pick: Pick = "weighted_vote"
    """How the answer is picked in the end; that is what has to be settled."""

    def __post_init__(self) -> None:
        for name, value in (("first", self.first), ("step", self.step)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if not 0 < self.error < 1:
            raise UserError(f"error {self.error}: must be between 0 and 1")


async def whole_responses(search: ProblemSearch, count: int) -> list[Candidate]:
    return await search.grow(search.root, count, whole=True)


DEFAULT = Adaptive()


async def adaptive_n(
    search: ProblemSearch,
    plan: Plan,
    settings: Adaptive = DEFAULT,
    budget: TokenBudget | None = None,
    sample: Sample = whole_responses,
) -> list[Candidate]:
    """At most `plan.size` responses. Without a budget, as many as it takes to settle the answer."""
    ended: list[Candidate] = []
    async with AsyncExitStack() as stack:
        share = await stack.enter_async_context(budget.problem()) if budget else None
        num_asked, count, need = 0, settings.first, 0.0
        while (count := min(count, plan.size - num_asked)) > 0:
            granted = await share.more(count, need) if share else count
            if not granted:
                break
            spent_before = search.num_sampled
            ended += await sample(search, granted)
            num_asked += granted
            if share:
                share.spent(search.num_sampled - spent_before)
            now = problem_outlook(ended, num_asked, plan.size, settings.pick)
            if now.is_settled(settings.error):
                break
            count, need = settings.step, now.gain
    return ended


def problem_outlook(ended: Sequence[Candidate], num_asked: int, size: int, pick: Pick) -> Outlook:
    """Of `size` responses, of which `num_asked` were sampled; those dropped or failed have no vote."""
    missing = num_asked - len(ended)
    answers = [*(candidate.answer for candidate in ended), *[None] * missing]
    log_votes = log_vote([candidate.worth() for candidate in ended], pick)
    return outlook(answers, np.append(log_votes, np.zeros(missing)), size - num_asked)


def log_vote(values: Sequence[float], pick: Pick) -> NDArray[np.float64]:
    """What `picking.pick` adds up for each response, as logarithm and up to a constant."""
    values_n = np.asarray(values, dtype=np.float64)
    if pick == "majority":
        return np.zeros(len(values_n))
    if pick == "best" and len(values_n):
        return _SHARP * (values_n - values_n.max()) / (values_n.std() or 1.0)
    return values_n
