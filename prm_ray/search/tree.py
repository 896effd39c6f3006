"""The tree of `mcts`: which of its leaves is worth expanding next. Arithmetic only; nothing here waits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from prm_ray.search.candidate import Candidate, distinct

_NOTHING = -math.inf
"""Outlook of a node below which nothing can be expanded."""


@dataclass(eq=False)
class Node:
    candidate: Candidate
    parent: Node | None
    outlook: float
    """The best value of an open leaf at or below this node that no descent has taken; `_NOTHING` = there is none."""
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    """Descents that went through here, those whose expansion is not back yet too."""

    def path(self) -> Iterable[Node]:
        """From here up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class Tree:
    """Candidates that were expanded, and their continuations.

    Nodes are chosen by PUCT (Silver et al. 2017): outlook plus `exploration * share * sqrt(visits of the parent) / (1 +
    visits)`. The share is the same for all continuations of a node: they were drawn from the policy, so how likely it
    finds one is already in how often that one is there.
    """

    def __init__(self, root: Candidate, exploration: float):
        self.root = Node(root, None, outlook=0.0)
        self._exploration = exploration
        self._lowest, self._highest = math.inf, -math.inf

    @property
    def can_grow(self) -> bool:
        return self.root.outlook > _NOTHING

    def open_leaves(self) -> list[Candidate]:
        """Those that were not expanded, best first."""
        leaves, unseen = [], [self.root]
        while unseen:
            node = unseen.pop()
            unseen += node.children
            if not node.children and node.outlook > _NOTHING:
                leaves.append(node)
        return [leaf.candidate for leaf in sorted(leaves, key=lambda leaf: -leaf.outlook)]

    def take(self, most: int) -> list[Node]:
        """Leaves to expand at the same time: at most so many, no leaf twice.

        A descent counts as a visit at once and takes its leaf out of the outlook of all nodes above it, so that the
        next one looks elsewhere: the virtual loss, with nothing to undo afterwards (Liu et al. 2020, arXiv 1810.11755).
        """
        taken: list[Node] = []
        while len(taken) < most and self.can_grow:
            leaf = self._descend()
            leaf.outlook = _NOTHING
            self._update_above(leaf)
            for node in leaf.path():
                node.visits += 1
            taken.append(leaf)
        return taken

    def add(self, leaf: Node, continuations: Iterable[Candidate]) -> None:
        """Puts in what an expansion gave; if that is nothing, the leaf is a dead end. Copies are not expanded twice."""
        for candidate in distinct(continuations):
            value = candidate.worth()
            self._lowest, self._highest = min(self._lowest, value), max(self._highest, value)
            leaf.children.append(Node(candidate, leaf, outlook=value if candidate.is_open else _NOTHING))
        if leaf.children:
            leaf.outlook = max(child.outlook for child in leaf.children)
        self._update_above(leaf)

    def _descend(self) -> Node:
        node = self.root
        while node.children:
            parent = node
            choices = [child for child in parent.children if child.outlook > _NOTHING]
            node = max(choices, key=lambda child: self._preference(parent, child))
        return node

    def _preference(self, parent: Node, child: Node) -> float:
        urge = math.sqrt(parent.visits) / (1 + child.visits) / len(parent.children)
        return self._normalised(child.outlook) + self._exploration * urge

    def _normalised(self, value: float) -> float:
        """Between 0 and 1 over all values so far (MuZero, arXiv 1911.08265): log-ratios have no scale of their own."""
        spread = self._highest - self._lowest
        return (value - self._lowest) / spread if spread > 0 else 0.0

    def _update_above(self, node: Node) -> None:
        for above in node.path():
            if above is not node:
                above.outlook = max(child.outlook for child in above.children)
