"""Which texts a cache holds, and in which slots: a radix tree over token ids that forgets the least recently used.

A run is a piece of text without a branching, a slot a token. The order of use is kept so that a run always comes behind
the runs below it; the oldest run is therefore a leaf, and forgetting starts at its last token: whatever stays in the
tree has all its ancestors there too.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from prm_ray.core.packing import NOWHERE, Places, Tokens, shared_prefix


@dataclass(eq=False)
class _Run:
    tokens: Tokens
    slots: Places
    parent: _Run | None
    turn: int = 0
    below: dict[int, _Run] = field(default_factory=dict)  # first token -> run


class RadixTree:
    """Slots 0 .. `num_slots` - 1. What was found or put in during the present turn is not forgotten in it."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self.clear()

    def clear(self) -> None:
        self._root = _Run(np.empty(0, dtype=np.int32), NOWHERE, None)
        self._by_use: OrderedDict[_Run, None] = OrderedDict()  # oldest first
        self._free = list(range(self.num_slots - 1, -1, -1))
        self._turn = 0

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def next_turn(self) -> None:
        self._turn += 1

    def find(self, tokens: Tokens) -> Places:
        """The slots of the longest start of `tokens` that is here; keeps them for this turn."""
        path = self._walk(tokens)
        self._touch(path)
        return np.concatenate([NOWHERE, *(run.slots for run in path)])

    def put(self, tokens: Tokens, slots: Places) -> None:
        """Add `tokens` in `slots`; a start of them that is here already must have the same slots."""
        path = self._walk(tokens)
        known = sum(len(run.slots) for run in path)
        if known < len(tokens):
            parent = path[-1] if path else self._root
            run = _Run(tokens[known:].copy(), slots[known:].copy(), parent)
            parent.below[int(tokens[known])] = run
            path.append(run)
        self._touch(path)

    def take(self, count: int) -> Places:
        """Up to `count` free slots, forgetting what was not used in this turn where there are too few."""
        while len(self._free) < count and self._by_use:
            oldest = next(iter(self._by_use))
            if oldest.turn == self._turn:
                break
            self._forget(oldest, count - len(self._free))
        start = max(len(self._free) - count, 0)
        taken, self._free = self._free[start:], self._free[:start]
        return np.array(taken[::-1], dtype=np.int64)

    def give_back(self, slots: Places) -> None:
        """Slots that were taken and not put in."""
        self._free += slots.tolist()

    def _forget(self, leaf: _Run, count: int) -> None:
        keep = max(len(leaf.slots) - count, 0)
        self._free += leaf.slots[keep:].tolist()
        if keep:
            leaf.tokens, leaf.slots = leaf.tokens[:keep], leaf.slots[:keep]
            return
        assert leaf.parent is not None and not leaf.below
        del leaf.parent.below[int(leaf.tokens[0])]
        del self._by_use[leaf]

    def _walk(self, tokens: Tokens) -> list[_Run]:
        """The runs that hold the longest start of `tokens`; a run that goes on differently is cut in two."""
        path: list[_Run] = []
        here, depth = self._root, 0
        while depth < len(tokens) and (run := here.below.get(int(tokens[depth]))) is not None:
            shared = shared_prefix(run.tokens, tokens[depth:])
            here = run if shared == len(run.tokens) else self._cut(run, shared)
            path.append(here)
            depth += shared
        return path

    def _cut(self, run: _Run, length: int) -> _Run:
        """Make the first `length` tokens of a run a run of its own, above the rest; the caller touches it."""
        assert run.parent is not None
        upper = _Run(run.tokens[:length], run.slots[:length], run.parent, run.turn, {int(run.tokens[length]): run})
        run.parent.below[int(run.tokens[0])] = upper
        run.tokens, run.slots, run.parent = run.tokens[length:], run.slots[length:], upper
        self._by_use[upper] = None
        return upper

    def _touch(self, path: list[_Run]) -> None:
        for run in reversed(path):  # the deepest first: each stays behind what is below it
            run.turn = self._turn
            self._by_use[run] = None
            self._by_use.move_to_end(run)
