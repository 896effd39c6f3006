"""How wide a search is: the numbers that strategies share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prm_ray.errors import UserError
from prm_ray.search.budget import TokenBudget
from prm_ray.settings import Pick


@dataclass(frozen=True)
class Adaptive:
    """When a problem ends. Defaults are chosen by `benchmarks.adaptive`."""

    first: int = 4
    """Responses before the first look."""
    step: int = 2
    """Responses between looks."""
    error: float = 0.1
    """Share of problems that may end early with another answer than N responses would have given."""
    pick: Pick = "weighted_vote"
    """How the answer is picked in the end; that is what has to be settled."""

    def __post_init__(self) -> None:
        for name, value in (("first", self.first), ("step", self.step)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if not 0 < self.error < 1:
            raise UserError(f"error {self.error}: must be between 0 and 1")


@dataclass(frozen=True)
class Plan:
    """Widths of one search of one problem."""

    size: int
    """N: responses of best-of-N; beams after they were continued; particles; expansions of a tree search."""
    expand: int = 4
    """M: continuations of a beam, or of a node of a tree."""
    lookahead: int = 1
    """Steps that `lookahead` looks beyond a candidate."""
    temperature: float = 1.0
    """`particles`: values are divided by it before they become weights, so a low one resamples sharply."""
    exploration: float = 1.0
    """`mcts`: how much an unvisited continuation is favoured over a good one. Values are between 0 and 1 there."""
    descents: int = 4
    """`mcts`: nodes that are expanded at the same time."""

    adaptive: Adaptive = Adaptive()
    budget: TokenBudget | None = None
    """`adaptive`: of all problems together; None = each ends when it is settled, or has all N."""
    reject_below: float = -math.inf
    """`rejection`: a beginning whose value is lower is not continued."""

    @property
    def width(self) -> int:
        """Beams that are kept."""
        return self.size // self.expand
