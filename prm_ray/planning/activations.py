"""Bytes that a pass keeps for backward, and those it needs for a moment: a token of one layer, and the output layer.

Counted from what autograd saves of each operation, in the layers of transformers and in `core.attention` and
`core.logprobs`; docs/planning.md has the list. `number` is the bytes of a number in the compute dtype, 2 or 4.

Letters as in the code counted: D hidden size, I inner size of the MLP, Q numbers of a query, K of a key, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from prm_ray.planning.shapes import Shape

FLOAT = 4
"""Bytes of a float32 number: norms, masters and log-probs are in float32 whatever the model computes in."""
_TILE_TOKENS, _TILE_WORDS, _GPU_FACTOR = 512, 8192, 8
"""`core.logprobs`: a tile of the output layer, tokens x words in float32, and how many times the tokens on a GPU.
"""
_TILES, _TILES_FROZEN = 2, 3
"""Tiles that are there at once: the one before is still named while the next is computed; with a frozen output layer
its softmax too. One more in bfloat16, for the products that come before and behind them."""


@dataclass(frozen=True)
class Batch:
    """One pass: its tokens, and how many of them are response tokens, whose log-probs are wanted."""

    tokens: float
    wanted: float
    per_step: int = 1
    """Passes of an optimizer step on a worker."""


def kept_in_layer(shape: Shape, number: int, rank: int = 0) -> float:
    """Bytes a token that one layer keeps for backward. `rank` of an adapter; 0 = all weights are trained."""
    hidden, inner, query, key = shape.hidden, shape.intermediate, shape.query, shape.key
    gain = 0 if rank else number  # the product with a gain keeps its other factor only if the gain is trained
    norm = hidden * (FLOAT + gain + number)  # what comes in, in float32; times its scale; what goes on to the matrices
    head_norms = (query + key) * (FLOAT + gain) if shape.has_head_norms else 0
    attention = number * (2 * query + 2 * key) + FLOAT * shape.heads  # queries, keys, values, result; log-sum-exps
    mlp = 4 * number * inner  # gate, its activation, up, and their product
    adapter = 7 * number * rank
    return 2 * norm + head_norms + attention + mlp + adapter


def backward_of_layer(shape: Shape, number: int) -> float:
    """Bytes a token above what the layer keeps, where its backward needs most: three gradients of the MLP's inner
    numbers against the one kept number that is gone by then, and the residual stream's gradient."""
    return number * (2 * shape.intermediate + shape.hidden)


def forward_of_layer(shape: Shape, number: int) -> float:
    """Bytes a token of a pass without backward, where it needs most: in the MLP, or in a norm, beside the residual."""
    mlp = 3 * number * shape.intermediate + 2 * number * shape.hidden
    norm = (3 * FLOAT + 2 * number) * shape.hidden
    rotary = number * (5 * shape.query + 2 * shape.key + shape.hidden)
    return max(mlp, norm, rotary)


def last_norm(shape: Shape, number: int, rank: int = 0) -> float:
    """Bytes a token that the norm behind the last layer keeps."""
    return shape.hidden * (FLOAT + (0 if rank else number))


def output_layer(shape: Shape, number: int, batch: Batch, head_trained: bool, on_gpu: bool) -> float:
    """Bytes of the output layer in training: hidden states at wanted tokens, their gradient or its direction, and tiles
    of logits. The tokens x vocabulary matrix never exists. The gradient of a trained output layer is not in it."""
    hidden, tile, casts = batch.wanted * shape.hidden, _tile(shape, batch, on_gpu), int(number < FLOAT)
    if head_trained:
        return hidden * (number + FLOAT) + (_TILES + casts) * tile
    return hidden * 2 * number + (_TILES_FROZEN + casts) * tile


def scored_output_layer(shape: Shape, number: int, batch: Batch, on_gpu: bool) -> float:
    """The same without backward."""
    return batch.wanted * shape.hidden * number + (_TILES + int(number < FLOAT)) * _tile(shape, batch, on_gpu)


def _tile(shape: Shape, batch: Batch, on_gpu: bool) -> float:
    tokens = _TILE_TOKENS * (_GPU_FACTOR if on_gpu else 1)
    return FLOAT * min(tokens, batch.wanted) * min(_TILE_WORDS, shape.vocab)
