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

SHORTEST_ROW = 256
"""Rows hold at least so many tokens where there are enough trees: attention over that length is still cheap."""
_FULL = 0.75
"""A row joins a batch if it fills at least this share of the batch's length; the rest of it would be padding."""


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
class _Tree:
    group: int
    prompt: Sequence[int]
    branches: list[tuple[int, Sequence[int]]]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(tokens) for _, tokens in self.branches)


def pack(groups: Sequence[PromptGroup], token_budget: int) -> list[PackedBatch]:
    """Cut groups into batches of at most `token_budget` tokens, padding included.

    A group over the budget is split, each piece behind its own copy of the prompt. One response alone over the budget
    makes a batch of its own: the budget bounds how much is put together, never what can be computed. Short trees share
    a row, so that little of a batch is padding.
    """
    trees = [tree for index, group in enumerate(groups) for tree in _trees(index, group, token_budget)]
    trees.sort(key=lambda tree: -tree.length)
    batches: list[list[list[_Tree]]] = []
    for row in _fill_rows(trees, token_budget):
        width = _width(batches[-1][0]) if batches else 0
        fits = bool(batches) and width * (len(batches[-1]) + 1) <= token_budget
        if fits and width * _FULL <= _width(row) <= width:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [_batch(rows) for rows in batches]


def unpack(values_R: Tensor, batch: PackedBatch) -> list[tuple[tuple[int, int], Tensor]]:
    """Cut values per response token back into ((group, response), values) pairs."""
    return list(zip(batch.branches, values_R.split(batch.lengths), strict=True))


def _trees(index: int, group: PromptGroup, token_budget: int) -> list[_Tree]:
    trees: list[_Tree] = []
    room = 0
    for number, response in enumerate(group.responses):
        if not trees or len(response) > room:
            trees.append(_Tree(index, group.prompt, []))
            room = token_budget - len(group.prompt)
        trees[-1].branches.append((number, response))
        room -= len(response)
    return trees


def _fill_rows(trees: list[_Tree], token_budget: int) -> list[list[_Tree]]:
    """First-fit over trees that come longest first; the fullest rows first.

    The tree that opens a row sets its length, so one long tree does not make the attention of all rows long.
    """
    rows: list[list[_Tree]] = []
    shortest = min(SHORTEST_ROW, token_budget)
    for tree in trees:
        row = next((row for row in rows if _width(row) + tree.length <= max(shortest, row[0].length)), None)
        if row is None:
            rows.append([tree])
        else:
            row.append(tree)
    return sorted(rows, key=lambda row: -_width(row))


def _width(row: list[_Tree]) -> int:
    return sum(tree.length for tree in row)


def _batch(rows: list[list[_Tree]]) -> PackedBatch:
    length = max(_width(row) for row in rows)
    input_ids_GT = torch.zeros(len(rows), length, dtype=torch.long)
    position_ids_GT = torch.zeros(len(rows), length, dtype=torch.long)
    tree_GT = torch.full((len(rows), length), -1)  # which tree of the row; -1 = padding
    branch_GT = torch.zeros(len(rows), length, dtype=torch.long)  # 0 = prompt, 1.. = branches
    targets: list[int] = []
    predictors, branches, lengths = [], [], []
    for g, row in enumerate(rows):
        end = 0
        for number, tree in enumerate(row):
            trunk = len(tree.prompt)
            start, end = end, end + trunk
            input_ids_GT[g, start:end] = torch.as_tensor(tree.prompt)
            position_ids_GT[g, start:end] = torch.arange(trunk)
            tree_GT[g, start : start + tree.length] = number
            last_of_prompt = g * length + end - 1
            for branch, (response, tokens) in enumerate(tree.branches, start=1):
                start, end = end, end + len(tokens)
                input_ids_GT[g, start:end] = torch.as_tensor(tokens)
                position_ids_GT[g, start:end] = torch.arange(trunk, trunk + len(tokens))
                branch_GT[g, start:end] = branch
                predictors += [last_of_prompt, *range(g * length + start, g * length + end - 1)]
                targets += tokens
                branches.append((tree.group, response))
                lengths.append(len(tokens))
    return PackedBatch(
        input_ids_GT,
        position_ids_GT,
        _tree_mask(tree_GT, branch_GT),
        torch.tensor(predictors),
        torch.tensor(targets),
        branches,
        lengths,
    )


def _tree_mask(tree_GT: Tensor, branch_GT: Tensor) -> Tensor:
    """[G, 1, T, T] bool: a token sees earlier tokens of its own branch and of its own prompt; padding sees itself."""
    length = tree_GT.shape[1]
    earlier_TT = torch.ones(length, length, dtype=torch.bool).tril()
    same_tree_GTT = tree_GT[:, :, None] == tree_GT[:, None, :]
    key_G1T = branch_GT[:, None, :]
    trunk_or_own_GTT = (key_G1T == 0) | (key_G1T == branch_GT[:, :, None])
    return (earlier_TT & same_tree_GTT & trunk_or_own_GTT)[:, None]
