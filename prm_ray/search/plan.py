"""How wide a search is: the numbers that strategies share."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def width(self) -> int:
        """Beams that are kept."""
        return self.size // self.expand
