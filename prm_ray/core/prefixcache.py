"""What a model computed for tokens it has seen, kept across calls: new candidates cost only their new tokens.

A token's slot holds its keys and values of every layer, its final hidden state (which predicts whatever follows it)
and its log-prob behind its ancestors, once somebody asked. Memory is bounded by the number of slots; the least recently
used tokens make room. A call with more new tokens than there is room for is computed all the same and kept in part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from prm_ray.core.packing import PackedBatch, Places, Tokens
from prm_ray.core.past import Past, Pools, slots_at
from prm_ray.core.radix import RadixTree


class PrefixCache:
    """The cache of one model, of at most `num_tokens` tokens; for inference.

    Who looks up, computes and stores does so within `use()`, one caller at a time: another thread waits there. Weights
    that were changed in place (an optimizer's step, a loaded state) empty the cache. Nothing here sees a change of
    another kind, e.g. an adapter that is switched off; call `clear()` then.
    """

    def __init__(self, model: Any, num_tokens: int):
        """`num_tokens` is 0 (keeps nothing) or more."""
        if num_tokens < 0:
            raise ValueError(f"a prefix cache of {num_tokens} tokens; it must be 0 or more")
        self.model = model
        self.num_tokens = num_tokens
        self.num_computed = 0
        """Tokens that went through the model since the cache was made."""
        self.num_found = 0
        """Tokens that did not, because they were here; each counts once a batch, in however many texts it is."""
        self._tree, self._pools = RadixTree(num_tokens), Pools(num_tokens)
        self._lock = threading.Lock()
        self._weights = _weights(model)

    @property
    def num_used(self) -> int:
        """Tokens that are kept now."""
        return self._tree.num_used

    @property
    def num_bytes(self) -> int:
        """Memory of all slots: 0 before the first call, the same ever after."""
        return sum(pool.nbytes for pool in self._pools.by_name.values())

    def clear(self) -> None:
        """Forget every token; the memory stays for others."""
        self._tree.clear()

    @contextmanager
    def use(self) -> Iterator[None]:
        with self._lock:
            weights = _weights(self.model)
            if weights != self._weights:
                self.clear()
                self._weights = weights
            yield

    def find(self, tokens: Tokens) -> Places:
        """The slots of the longest start of `tokens` that is kept; they stay until the next batch is computed."""
        return self._tree.find(tokens)

    @contextmanager
    def room_for(self, batch: PackedBatch) -> Iterator[Past]:
        """Where a batch, on the model's device, reads and stores; what it stored is kept if the block ends well."""
        slots_S = self._tree.take(len(batch.input_ids_T))
        try:
            with ExitStack() as undo:
                undo.callback(self._tree.give_back, slots_S)
                yield Past(self._pools, batch, slots_S)
                undo.pop_all()
        finally:
            self._tree.next_turn()
        self.num_computed += len(batch.input_ids_T)
        self.num_found += batch.num_cached
        for tokens, places in batch.paths:
            kept = places[places < len(slots_S)]  # a start of the text, as places grow along it
            slots = slots_at(torch.from_numpy(kept), torch.from_numpy(slots_S))
            self._tree.put(tokens[: len(kept)], slots.numpy())


def _weights(model: Any) -> list[tuple[int, int]]:
    """Another value after every change of the weights in place; reads none of them."""
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in model.parameters()]
