"""Pack responses behind their prompts as a forest: every token of a shared prefix is there once.

A batch is one flat sequence of tokens, the nodes of prefix trees one behind the other, depth first. Candidates of a
prompt share the prompt, candidates that share their first steps share those, and prompts that start with the same
worked examples share those. A token sees its ancestors and keeps the position it has in its own text, so each log-prob
equals the one of the response alone behind its prompt.

Depth first has a happy consequence: the tokens below a node are the ones right behind it. Key k is seen by exactly the
queries k, k+1, .. up to the end of its node's subtree, a range. `attention.py` rests on that.

A text may begin with tokens that an earlier call computed and `prefixcache.py` keeps: they are left out, and what
follows them is the root of a tree whose first ancestors are in the cache. A token's *place* is its index in the batch,
or ~slot (a negative number) where it is in the cache.

Letters: T tokens of a batch, U tokens whose log-prob is wanted, R response tokens of all branches, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int32]
Places = NDArray[np.int64]
NOWHERE: Places = np.empty(0, dtype=np.int64)


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
    place_U: Tensor  # the wanted tokens' places
    predictor_U: Tensor  # the place of the token whose hidden state predicts each wanted token
    target_U: Tensor  # the wanted tokens' ids
    source_R: Tensor  # for each response token, which of the U it is
    branches: list[tuple[int, int]] = field(default_factory=list)  # (group, response) in the order of R
    lengths: list[int] = field(default_factory=list)  # tokens of each branch; sums to R
    roots: list[tuple[int, Places]] = field(default_factory=list)  # (first token of a tree, slots of all before it)
    paths: list[tuple[Tokens, Places]] = field(default_factory=list)  # texts that have new tokens, and their places
    num_cached: int = 0  # tokens that would be among the T if no cache had them

    def to(self, device: torch.device) -> PackedBatch:
        if self.input_ids_T.device == device:
            return self
        names = ("input_ids_T", "position_ids_T", "place_U", "predictor_U", "target_U", "source_R")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


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
    return list(pack_lazily(groups, token_budget))


def pack_lazily(
    groups: Sequence[PromptGroup], token_budget: int, find: Callable[[Tokens], Places] | None = None
) -> Iterator[PackedBatch]:
    """The same batch by batch; what is cached by then is left out.

    `find` gives the slots of the longest start of a text that the cache holds. It is asked for a batch's texts after
    the batches before it were taken, so a batch builds upon what they left there.
    """
    forest, previous = _Forest(), None
    for text in sorted(_texts(groups), key=lambda text: text.key):
        shared = 0 if previous is None else shared_prefix(previous, text.tokens)
        slots = NOWHERE if find is None else find(text.tokens)
        if previous is not None and forest.num_tokens + len(text.tokens) - max(shared, len(slots)) > token_budget:
            yield forest.batch()
            forest, shared = _Forest(), 0
            slots = NOWHERE if find is None else find(text.tokens)
        forest.add(text, shared, slots)
        previous = text.tokens
    if previous is not None:
        yield forest.batch()


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


def shared_prefix(one: NDArray[Any], other: NDArray[Any]) -> int:
    """Number of elements that both start with."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


class _Forest:
    """Grows a batch text by text; texts come in the order of their tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._nodes: list[Node] = []
        self._open: list[tuple[int, Node]] = []  # the path to the last text: (depth of a node's first token, node)
        self._path = NOWHERE  # the places of the last text's tokens
        self._tokens: list[Tokens] = []
        self._positions: list[NDArray[np.int64]] = []
        self._wanted: list[tuple[Places, Places, Tokens]] = []  # of each text: places, predictors, ids
        self._branches: list[tuple[int, int]] = []
        self._roots: list[tuple[int, Places]] = []
        self._paths: list[tuple[Tokens, Places]] = []
        self._num_cached = 0

    def add(self, text: _Text, shared: int, slots: Places) -> None:
        """Add a text whose first `shared` tokens are those of the text before it, and whose first ones are in `slots`.

        The order of the texts makes sure that the slots of the one before are the same up to there: a cached start is
        either as long for both, or at least `shared` tokens long for both.
        """
        self._leave(shared)
        self._num_cached += max(len(slots) - shared, 0)
        is_root = len(slots) >= shared
        known = ~slots if is_root else self._path[:shared]
        start, length = self.num_tokens, len(text.tokens)
        self.num_tokens = stop = start + length - len(known)
        self._path = np.concatenate([known, np.arange(start, stop)])
        if stop > start:
            node = Node(start, stop, stop)
            self._nodes.append(node)
            self._open.append((len(known), node))
            self._tokens.append(text.tokens[len(known) :])
            self._positions.append(np.arange(len(known), length))
            self._paths.append((text.tokens, self._path))
            if is_root:
                self._roots.append((start, slots))
        prompt = text.prompt_length
        self._wanted.append((self._path[prompt:], self._path[prompt - 1 : -1], text.tokens[prompt:]))
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
        wanted_R, predictor_R, target_R = (np.concatenate(parts) for parts in zip(*self._wanted, strict=True))
        place_U, first_U, source_R = np.unique(wanted_R, return_index=True, return_inverse=True)
        return PackedBatch(
            _tensor(self._tokens),
            _tensor(self._positions),
            self._nodes,
            torch.from_numpy(place_U),
            torch.from_numpy(predictor_R[first_U]),
            torch.from_numpy(target_R[first_U].astype(np.int64)),
            torch.from_numpy(source_R),
            self._branches,
            [len(wanted) for wanted, _, _ in self._wanted],
            self._roots,
            self._paths,
            self._num_cached,
        )


def _tensor(parts: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate([NOWHERE, *parts]))
