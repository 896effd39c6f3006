"""What a batch's new tokens see of those computed before: which of them, and what is stored of them.

Letters: N slots, C cached tokens that have new ones below them, S new tokens that are kept, U wanted tokens, T tokens
of a batch, X = C + T, K key-value heads, D head size, E hidden size, B rows (one).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prm_ray.core.packing import NOWHERE, PackedBatch, Places, shared_prefix

BLOCK = 128
"""Cached runs are done together in one masked call up to so many keys and so many queries."""


@dataclass
class Pools:
    """A row a slot for each kind of thing; made when its first rows come, which tell shape and dtype."""

    num_slots: int
    by_name: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def store(self, name: tuple[str, int], slots: Tensor, rows: Tensor) -> None:
        if name not in self.by_name:
            self.by_name[name] = rows.new_empty(self.num_slots, *rows.shape[1:])
        self.by_name[name].index_copy_(0, slots, rows)

    def read(self, name: tuple[str, int], slots: Tensor) -> Tensor:
        return self.by_name[name].index_select(0, slots)


@dataclass(frozen=True)
class PastSegment:
    """One call: queries [first, last) of the new tokens against keys [start, stop) of the cached ones."""

    first: int
    last: int
    start: int
    stop: int
    is_block: bool
    """True = needs a mask; False = every query sees every key."""

    @property
    def queries(self) -> slice:
        return slice(self.first, self.last)

    @property
    def keys(self) -> slice:
        return slice(self.start, self.stop)


class Past:
    """One batch's view of a cache. Everything is stored while the batch is computed, layer by layer."""

    def __init__(self, pools: Pools, batch: PackedBatch, slots_S: Places):
        device = batch.input_ids_T.device
        slots_C, first_C, last_C = _ancestors(batch.roots, len(batch.input_ids_T))
        self.num_keys = len(slots_C)
        self.runs = _runs(_segments(first_C, last_C))
        self.first_C, self.last_C = torch.from_numpy(first_C).to(device), torch.from_numpy(last_C).to(device)
        """Key c is seen by the new tokens first[c] .. last[c] - 1: those below it."""
        self._slots_C, self._slots_S = torch.from_numpy(slots_C).to(device), torch.from_numpy(slots_S).to(device)
        self._pools, self._batch = pools, batch
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        pools.store(("logprob", 0), self._slots_S, torch.full((len(slots_S),), torch.nan, device=device))

    def mask(self, segment: PastSegment, dtype: torch.dtype) -> Tensor | None:
        """What a kernel adds to the scores of a block: 0 where a query sees a key, else minus infinity."""
        if not segment.is_block:
            return None
        key = (segment.start, dtype)
        if key not in self._masks:
            query = torch.arange(segment.first, segment.last, device=self.first_C.device)[:, None]
            keys = slice(segment.start, segment.stop)
            seen = (self.first_C[keys] <= query) & (query < self.last_C[keys])
            self._masks[key] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return self._masks[key]

    def above(self, token: int) -> Tensor:
        """Which of the C a new token sees."""
        return ((self.first_C <= token) & (token < self.last_C)).nonzero().squeeze(1)

    def extend(self, layer: int, key_BKTD: Tensor, value_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store what a layer made of the batch's tokens; those of the cached ones and they, [B, K, X, D]."""
        extended = []
        for name, states_BKTD in (("key", key_BKTD), ("value", value_BKTD)):
            self._pools.store((name, layer), self._slots_S, states_BKTD[0, :, : len(self._slots_S)].transpose(0, 1))
            if self.num_keys:
                past_BKCD = self._pools.read((name, layer), self._slots_C).transpose(0, 1)[None]
                states_BKTD = torch.cat([past_BKCD, states_BKTD], dim=2)
            extended.append(states_BKTD)
        return extended[0], extended[1]

    def store_hidden(self, hidden_TE: Tensor) -> None:
        self._pools.store(("hidden", 0), self._slots_S, hidden_TE[: len(self._slots_S)])

    def predictors(self, hidden_TE: Tensor | None, rows_U: Tensor) -> Tensor:
        """Hidden states [rows, E] that predict those wanted tokens; `hidden_TE` is none where no token is new."""
        place = self._batch.predictor_U[rows_U]
        is_new = place >= 0
        if hidden_TE is not None and bool(is_new.all()):
            return hidden_TE[place]
        cached = self._pools.read(("hidden", 0), ~place[~is_new])
        states = cached.new_empty(len(place), cached.shape[1])
        states[~is_new] = cached
        if hidden_TE is not None:
            states[is_new] = hidden_TE[place[is_new]]
        return states

    def known_logprobs(self) -> Tensor:
        """float32 [U]; NaN for new tokens, and for cached ones that nobody asked for."""
        place = self._batch.place_U
        logprobs_U = torch.full(place.shape, torch.nan, device=place.device)
        logprobs_U[place < 0] = self._pools.read(("logprob", 0), ~place[place < 0])
        return logprobs_U

    def store_logprobs(self, logprobs_U: Tensor) -> None:
        place = self._batch.place_U
        kept = place < len(self._slots_S)
        self._pools.store(("logprob", 0), slots_at(place[kept], self._slots_S), logprobs_U[kept])


def slots_at(places: Tensor, slots_S: Tensor) -> Tensor:
    """The slots of places that are in the cache already or among the S new tokens that are kept."""
    slots = ~places
    slots[places >= 0] = slots_S[places[places >= 0]]
    return slots


def _ancestors(roots: list[tuple[int, Places]], num_tokens: int) -> tuple[Places, NDArray[np.int64], NDArray[np.int64]]:
    """(slots, first, last) [C]: the distinct cached tokens before `roots`, depth first, and what is below each."""
    slots, first, last = [NOWHERE], [NOWHERE], np.empty(sum(len(path) for _, path in roots), dtype=np.int64)
    path, index, count = NOWHERE, NOWHERE, 0  # those of the root before, and where they are among the C
    for start, above in [*roots, (num_tokens, NOWHERE)]:
        shared = shared_prefix(path, above)
        last[index[shared:]] = start
        new = np.arange(count, count + len(above) - shared)
        slots.append(above[shared:])
        first.append(np.full(len(new), start))
        path, index, count = above, np.concatenate([index[:shared], new]), count + len(new)
    return np.concatenate(slots), np.concatenate(first), last[:count]


def _runs(segments: list[PastSegment]) -> list[list[PastSegment]]:
    """Neighbours whose queries follow one another."""
    runs: list[list[PastSegment]] = []
    for segment in segments:
        if runs and runs[-1][-1].last == segment.first:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _segments(first_C: NDArray[np.int64], last_C: NDArray[np.int64]) -> list[PastSegment]:
    """Keys with the same queries are one call. Small neighbours are put together, if each query sees a key in there.

    Depth first, what follows a run is below it, beside it or has nothing to do with it; the first two may join.
    """
    changes = np.flatnonzero((np.diff(first_C) != 0) | (np.diff(last_C) != 0)) + 1
    segments: list[PastSegment] = []
    for start, stop in zip([0, *changes], [*changes, len(first_C)], strict=True):
        if start == stop:
            continue
        first, last = int(first_C[start]), int(last_C[start])
        before = segments[-1] if segments else None
        if before and first <= before.last and stop - before.start <= BLOCK and last - before.first <= BLOCK:
            last = max(last, before.last)
            segments[-1] = PastSegment(before.first, last, before.start, int(stop), True)
        else:
            segments.append(PastSegment(first, last, int(start), int(stop), False))
    return segments
