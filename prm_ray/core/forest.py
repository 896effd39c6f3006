"""Who sees whom in a forest: as segments for a fused CPU kernel, as a block mask for FlexAttention on a GPU.

Key k is seen by the queries k .. last[k] - 1, its node's subtree; all that is here follows from that. Tokens of a
prefix cache (`past.py`) are keys without queries, put in front of the batch's own.

Letters: T tokens, C cached tokens, X = C + T, N blocks of FlexAttention, K keys of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prm_ray.core.packing import Node
from prm_ray.core.past import Past

BLOCK = 128
"""Subtrees of up to so many tokens are done together in one masked call, where a call each would cost more."""
_FLEX_BLOCK = 128
"""Side of FlexAttention's blocks."""


@dataclass(frozen=True)
class Segment:
    """One call: queries [start, end) against keys [start, stop)."""

    start: int
    stop: int
    end: int
    is_block: bool
    """True = needs a mask; False = causal, counted from `start`."""
    depth: int
    """How many segments before it have these queries too."""

    @property
    def queries(self) -> slice:
        return slice(self.start, self.end)

    @property
    def keys(self) -> slice:
        return slice(self.start, self.stop)


@dataclass
class ForestAttention:
    """How the tokens of one batch see each other; made once a batch, used by every layer."""

    nodes: list[Node]
    num_tokens: int
    device: torch.device
    past: Past | None = None
    _masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def num_past(self) -> int:
        """C, the number of keys in front of the batch's own."""
        return self.past.num_keys if self.past else 0

    @cached_property
    def segments(self) -> list[Segment]:
        return _segments(self.nodes)

    @cached_property
    def runs(self) -> list[list[Segment]]:
        """The segments of each depth, cut where their queries do not follow one another; a depth behind those above."""
        runs: list[list[Segment]] = []
        for segment in sorted(self.segments, key=lambda segment: (segment.depth, segment.start)):
            last = runs[-1][-1] if runs else None
            if last and (last.depth, last.end) == (segment.depth, segment.start):
                runs[-1].append(segment)
            else:
                runs.append([segment])
        return runs

    @cached_property
    def last_T(self) -> Tensor:
        """For each key the end of its node's subtree: key k is seen by queries k .. last[k] - 1."""
        ends = torch.tensor([node.end for node in self.nodes])
        lengths = torch.tensor([node.stop - node.start for node in self.nodes])
        return ends.repeat_interleave(lengths).to(self.device)

    def mask(self, segment: Segment, dtype: torch.dtype) -> Tensor | None:
        """What a kernel adds to the scores of a block: 0 where a query sees a key, else minus infinity."""
        if not segment.is_block:
            return None
        key = (segment.start, dtype)
        if key not in self._masks:
            index = torch.arange(segment.start, segment.end, device=self.device)
            seen = (index <= index[:, None]) & (index[:, None] < self.last_T[segment.start : segment.stop])
            self._masks[key] = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, -torch.inf)
        return self._masks[key]

    @cached_property
    def block_mask(self) -> Any:
        """The same as a FlexAttention block mask, from the ranges: no `tokens x tokens` matrix on the way there."""
        from torch.nn.attention.flex_attention import BlockMask

        last_T = self.last_T

        def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < last_T[key])

        if self.past is not None:
            return self._past_mask
        num_blocks = -(-self.num_tokens // _FLEX_BLOCK)
        last_NK = torch.nn.functional.pad(last_T, (0, num_blocks * _FLEX_BLOCK - self.num_tokens))
        last_NK = last_NK.view(num_blocks, _FLEX_BLOCK)  # N blocks of K keys
        start_N = torch.arange(num_blocks, device=self.device) * _FLEX_BLOCK
        below_NN = start_N < start_N[:, None]  # rows: blocks of queries, columns: blocks of keys
        seen_NN = below_NN & (last_NK.amax(dim=1) > start_N[:, None])
        full_NN = below_NN & (last_NK.amin(dim=1) >= start_N[:, None] + _FLEX_BLOCK)
        partial_NN = (seen_NN & ~full_NN) | (start_N == start_N[:, None])
        return BlockMask.from_kv_blocks(
            *_block_lists(partial_NN),
            *_block_lists(full_NN),
            BLOCK_SIZE=_FLEX_BLOCK,
            mask_mod=sees,
            seq_lengths=(self.num_tokens, self.num_tokens),
        )

    @cached_property
    def _past_mask(self) -> Any:
        """With cached tokens before the batch's own; few tokens are new then, so all pairs are few."""
        from torch.nn.attention.flex_attention import create_block_mask

        assert self.past is not None
        first_X = torch.cat([self.past.first_C, torch.arange(self.num_tokens, device=self.device)])
        last_X = torch.cat([self.past.last_C, self.last_T])

        def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (first_X[key] <= query) & (query < last_X[key])

        return create_block_mask(sees, None, None, self.num_tokens, len(last_X), device=str(self.device))


def _block_lists(wanted_NN: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries how many blocks of keys are wanted, and the blocks of keys with these first."""
    order_NN = torch.argsort(wanted_NN.int(), dim=1, descending=True, stable=True)
    return wanted_NN.sum(dim=1, dtype=torch.int32)[None, None], order_NN.int()[None, None]


def _segments(nodes: list[Node]) -> list[Segment]:
    segments: list[Segment] = []
    above: list[int] = []  # ends of the large subtrees around this node
    done = 0  # nodes before this token are in the last block
    for node in nodes:
        if node.start < done:
            continue
        while above and above[-1] <= node.start:
            above.pop()
        depth = len(above)
        if node.end - node.start > BLOCK:
            segments.append(Segment(node.start, node.stop, node.end, False, depth))
            above.append(node.end)
            continue
        done = node.end
        last = segments[-1] if segments else None
        if last and last.end == node.start and last.depth == depth and node.end - last.start <= BLOCK:
            segments[-1] = Segment(last.start, node.end, node.end, True, depth)
        else:
            segments.append(Segment(node.start, node.end, node.end, node.stop < node.end, depth))
    return segments
