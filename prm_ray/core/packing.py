"""Pack the responses of a prompt behind one copy of it: a row is a tree of one trunk and many branches.

Branches see the prompt and themselves, never each other, and each continues the prompt's positions, so every log-prob
equals the one of the response alone behind its prompt. N responses cost one prompt instead of N.

Letters: G rows of a batch, T tokens of the longest row, R response tokens of a batch (all branches, in order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and its responses, as token ids. Both must be non-empty."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt must have at least one token")
        if any(not response for response in self.responses):
            raise ValueError("a response must have at least one token")


@dataclass
class PackedBatch:
    """A forward pass: rows padded to one length, and where to read the response tokens' log-probs."""

    input_ids_GT: Tensor
    position_ids_GT: Tensor
    mask_G1TT: Tensor  # bool, True = may look at
    predictor_R: Tensor  # index into the flattened G*T positions whose hidden state predicts token r
    target_R: Tensor  # the token ids of the responses
    branches: list[tuple[int, int]] = field(default_factory=list)  # (group, response) in the order of R
    lengths: list[int] = field(default_factory=list)  # tokens of each branch; sums to R

    def to(self, device: torch.device) -> PackedBatch:
        return PackedBatch(
            self.input_ids_GT.to(device),
            self.position_ids_GT.to(device),
            self.mask_G1TT.to(device),
            self.predictor_R.to(device),
            self.target_R.to(device),
            self.branches,
            self.lengths,
        )


@dataclass(frozen=True)
class _Row:
    group: int
    prompt: Sequence[int]
    branches: list[tuple[int, Sequence[int]]]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(tokens) for _, tokens in self.branches)


def pack(groups: Sequence[PromptGroup], token_budget: int) -> list[PackedBatch]:
    """Cut groups into batches of at most `token_budget` tokens, padding included, similar lengths together.

    A group over the budget is split, each piece behind its own copy of the prompt. One response alone over the budget
    makes a batch of its own: the budget bounds how much is put together, never what can be computed.
    """
    rows = sorted(
        (row for index, group in enumerate(groups) for row in _rows(index, group, token_budget)),
        key=lambda row: -row.length,
    )
    batches: list[list[_Row]] = []
    for row in rows:
        longest = batches[-1][0].length if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [_batch(rows) for rows in batches]


def unpack(values_R: Tensor, batch: PackedBatch) -> list[tuple[tuple[int, int], Tensor]]:
    """Cut values per response token back into ((group, response), values) pairs."""
    return list(zip(batch.branches, values_R.split(batch.lengths), strict=True))


def _rows(index: int, group: PromptGroup, token_budget: int) -> list[_Row]:
    rows: list[_Row] = []
    room = 0
    for number, response in enumerate(group.responses):
        if not rows or len(response) > room:
            rows.append(_Row(index, group.prompt, []))
            room = token_budget - len(group.prompt)
        rows[-1].branches.append((number, response))
        room -= len(response)
    return rows


def _batch(rows: list[_Row]) -> PackedBatch:
    length = max(row.length for row in rows)
    input_ids_GT = torch.zeros(len(rows), length, dtype=torch.long)
    position_ids_GT = torch.zeros(len(rows), length, dtype=torch.long)
    branch_GT = torch.full((len(rows), length), -1)  # 0 = prompt, 1.. = branches, -1 = padding
    targets: list[int] = []
    predictors, branches, lengths = [], [], []
    for g, row in enumerate(rows):
        trunk = len(row.prompt)
        input_ids_GT[g, :trunk] = torch.as_tensor(row.prompt)
        position_ids_GT[g, :trunk] = torch.arange(trunk)
        branch_GT[g, :trunk] = 0
        start = trunk
        for number, (response, tokens) in enumerate(row.branches, start=1):
            end = start + len(tokens)
            input_ids_GT[g, start:end] = torch.as_tensor(tokens)
            position_ids_GT[g, start:end] = torch.arange(trunk, trunk + len(tokens))
            branch_GT[g, start:end] = number
            predictors += [g * length + trunk - 1, *range(g * length + start, g * length + end - 1)]
            targets += tokens
            branches.append((row.group, response))
            lengths.append(len(tokens))
            start = end
    mask_G1TT = _tree_mask(branch_GT)
    return PackedBatch(
        input_ids_GT, position_ids_GT, mask_G1TT, torch.tensor(predictors), torch.tensor(targets), branches, lengths
    )


def _tree_mask(branch_GT: Tensor) -> Tensor:
    """[G, 1, T, T] bool: a token sees earlier tokens of the prompt and of its own branch; padding sees itself."""
    length = branch_GT.shape[1]
    query_GT1, key_G1T = branch_GT[:, :, None], branch_GT[:, None, :]
    earlier_TT = torch.ones(length, length, dtype=torch.bool).tril()
    same_or_trunk_GTT = (key_G1T == query_GT1) | (key_G1T == 0)
    itself_TT = torch.eye(length, dtype=torch.bool)
    return ((earlier_TT & same_or_trunk_GTT & (key_G1T >= 0)) | itself_TT)[:, None]
