"""Pack responses behind their prompts as a forest: every token of a shared prefix is there once.

A batch is one flat sequence of tokens, the nodes of prefix trees one behind the other, depth first. Candidates of a
prompt share the prompt, candidates that share their first steps share those, and prompts that start with the same
worked examples share those. A token sees its ancestors and keeps the position it has in its own text, so each log-prob
equals the one of the response alone behind its prompt.

Depth first has a happy consequence: the tokens below a node are the ones right behind it. Key k is seen by exactly the
queries k, k+1, .. up to the end of its node's subtree, a range. `attention.py` rests on that.

Letters: T tokens of a batch, U of them whose log-prob is wanted, R response tokens of all branches in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class PromptGroup:
    """One prompt of at least one token and its responses, as token ids. An empty response has no log-probs."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise ValueError("a prompt must have at least one token")


@dataclass
class Node:
    """Tokens [start, stop) of a batch that share all their ancestors; their subtree is [start, end)."""

    start: int
    stop: int
    end: int


@dataclass
class PackedBatch:
    """A forward pass over a forest, and where to read the response tokens' log-probs."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    nodes: list[Node]  # depth first: their [start, stop) are 0 .. T without gaps
    predictor_U: Tensor  # the position whose hidden state predicts each wanted token
    target_U: Tensor  # the wanted tokens' ids
    source_R: Tensor  # for each response token, which of the U it is
    branches: list[tuple[int, int]] = field(default_factory=list)  # (group, response) in the order of R
    lengths: list[int] = field(default_factory=list)  # tokens of each branch; sums to R

    def to(self, device: torch.device) -> PackedBatch:
        if self.input_ids_T.device == device:
            return self
        tensors = (self.input_ids_T, self.position_ids_T, self.predictor_U, self.target_U, self.source_R)
        input_ids, position_ids, predictor, target, source = (tensor.to(device) for tensor in tensors)
        return PackedBatch(input_ids, position_ids, self.nodes, predictor, target, source, self.branches, self.lengths)


@dataclass(frozen=True)
class _Text:
    """A prompt with one of its responses."""

    tokens: Tokens
    prompt_length: int
    branch: tuple[int, int]
    key: bytes  # sorts like the tokens do


def pack(groups: Sequence[PromptGroup], token_budget: int) -> list[PackedBatch]:
    """Cut groups into batches of at most `token_budget` tokens.

    Texts are put in the order of their tokens first, so what shares a prefix lies together; a group that is cut starts
    anew behind its own copy of the shared part. One text alone over the budget makes a batch of its own: the budget
    bounds how much is put together, never what can be computed. Raises `ValueError` for a number that is no token id.
    """
    texts = sorted(_texts(groups), key=lambda text: text.key)
    batches: list[_Forest] = []
    previous: Tokens | None = None
    for text in texts:
        shared = 0 if previous is None else _shared_prefix(previous, text.tokens)
        if not batches or batches[-1].num_tokens + len(text.tokens) - shared > token_budget:
            batches.append(_Forest())
            shared = 0
        batches[-1].add(text, shared)
        previous = text.tokens
    return [forest.batch() for forest in batches]


def unpack(values_R: Tensor, batch: PackedBatch) -> list[tuple[tuple[int, int], Tensor]]:
    """Cut values per response token back into ((group, response), values) pairs."""
    return list(zip(batch.branches, values_R.split(batch.lengths), strict=True))


def _texts(groups: Sequence[PromptGroup]) -> list[_Text]:
    texts = []
    for number, group in enumerate(groups):
        prompt = _token_ids(group.prompt)
        for index, response in enumerate(group.responses):
            tokens = np.concatenate([prompt, _token_ids(response)]) if len(response) else prompt
            texts.append(_Text(tokens, len(prompt), (number, index), tokens.astype(">i4").tobytes()))
    return texts


def _token_ids(values: Sequence[int]) -> Tokens:
    """Raises `ValueError` for what would be cut or wrapped to another token: fractions, negative or huge numbers."""
    tokens = np.asarray(values)
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max:
        raise ValueError(f"a token id must be a whole number from 0 to {np.iinfo(np.int32).max}, not as in {tokens}")
    return tokens.astype(np.int32)


def _shared_prefix(one: Tokens, other: Tokens) -> int:
    """Number of tokens that both start with."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


class _Forest:
    """Grows a batch text by text; texts come in the order of their tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._nodes: list[Node] = []
        self._open: list[tuple[int, Node]] = []  # the path to the last text: (depth of a node's first token, node)
        self._path = np.empty(0, dtype=np.int64)  # where the tokens of the last text are
        self._tokens: list[Tokens] = []
        self._positions: list[NDArray[np.int64]] = []
        self._parents: list[NDArray[np.int64]] = []
        self._wanted: list[NDArray[np.int64]] = []
        self._branches: list[tuple[int, int]] = []

    def add(self, text: _Text, shared: int) -> None:
        """Add a text whose first `shared` tokens are those of the text before it."""
        self._leave(shared)
        start, length = self.num_tokens, len(text.tokens)
        new = np.arange(start, start + length - shared)
        parent = self._path[shared - 1 : shared] if shared else np.array([-1])
        self._path = np.concatenate([self._path[:shared], new])
        if len(new):
            node = Node(start, start + len(new), start + len(new))
            self._nodes.append(node)
            self._open.append((shared, node))
            self._tokens.append(text.tokens[shared:])
            self._positions.append(np.arange(shared, length))
            self._parents.append(np.concatenate([parent, new[:-1]]))
            self.num_tokens += len(new)
        self._wanted.append(self._path[text.prompt_length :])
        self._branches.append(text.branch)

    def _leave(self, shared: int) -> None:
        """Close the nodes of the last path behind its first `shared` tokens; cut the node that this falls into."""
        while self._open and self._open[-1][0] >= shared:
            self._open.pop()[1].end = self.num_tokens
        if not self._open:
            return
        depth, node = self._open[-1]
        cut = node.start + shared - depth
        if cut < node.stop:
            self._nodes.append(Node(cut, node.stop, self.num_tokens))
            node.stop = cut

    def batch(self) -> PackedBatch:
        self._leave(0)
        self._nodes.sort(key=lambda node: node.start)
        wanted_R = np.concatenate(self._wanted)
        slots_U, source_R = np.unique(wanted_R, return_inverse=True)
        tokens_T, parents_T = np.concatenate(self._tokens), np.concatenate(self._parents)
        return PackedBatch(
            torch.from_numpy(tokens_T.astype(np.int64)),
            torch.from_numpy(np.concatenate(self._positions)),
            self._nodes,
            torch.from_numpy(parents_T[slots_U]),
            torch.from_numpy(tokens_T[slots_U].astype(np.int64)),
            torch.from_numpy(source_R),
            self._branches,
            [len(wanted) for wanted in self._wanted],
        )
