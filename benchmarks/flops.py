"""Useful floating-point operations of a packed batch, and the rate at which this machine does the model's own products.

Useful = what the packed tokens need and no more: 2 operations a matrix parameter and token in the body, the head only
at positions that predict a response token, and for attention the query-key pairs that truly see each other. Norms,
activations, softmax and what a kernel computes beside the pairs count as nothing. A training step needs three times
as much: backward takes two products for each one of forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prm_ray.core.packing import PackedBatch

_HEAD_ROWS = 512


def body_matrices(model: Any) -> list[nn.Linear]:
    """The linear layers below the head, in the order they are defined."""
    head = model.get_output_embeddings()
    return [module for module in model.base_model.modules() if isinstance(module, nn.Linear) and module is not head]


def visible_pairs(batch: PackedBatch) -> int:
    """Query-key pairs that see each other: a token at position p of its text sees itself and the p before it."""
    return int(batch.position_ids_T.sum()) + len(batch.position_ids_T)


def useful(model: Any, batch: PackedBatch) -> dict[str, float]:
    """Operations of one forward pass, by part."""
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = sum(matrix.weight.numel() for matrix in body_matrices(model))
    per_pair = 4 * config.num_attention_heads * head_size * config.num_hidden_layers
    return {
        "body": 2.0 * parameters * len(batch.input_ids_T),
        "head": 2.0 * model.get_output_embeddings().weight.numel() * len(batch.target_U),
        "attention": float(per_pair * visible_pairs(batch)),
    }


def body_products(model: Any, num_tokens: int) -> Callable[[], None]:
    """The body's matrix products for so many tokens and nothing else; every matrix is the model's own, in its order."""
    return _products([(matrix.weight.detach(), num_tokens) for matrix in body_matrices(model)])


def head_products(model: Any, num_wanted: int) -> Callable[[], None]:
    """The head's product at so many positions, some hundred at a time so that the result needs no more memory."""
    head_VD = model.get_output_embeddings().weight.detach()
    starts = range(0, num_wanted, _HEAD_ROWS)
    return _products([(head_VD, min(_HEAD_ROWS, num_wanted - start)) for start in starts])


def _products(wanted: list[tuple[Tensor, int]]) -> Callable[[], None]:
    """Each matrix times so many rows, one behind the other; inputs and outputs lie ready, one for each size."""
    inputs: dict[tuple[int, int], Tensor] = {}
    outputs: dict[tuple[int, int], Tensor] = {}
    for matrix, rows in wanted:
        for there, width in ((outputs, matrix.shape[0]), (inputs, matrix.shape[1])):
            if (rows, width) not in there:
                there[rows, width] = torch.randn(rows, width, device=matrix.device).to(matrix.dtype)

    def work() -> None:
        for matrix, rows in wanted:
            torch.mm(inputs[rows, matrix.shape[1]], matrix.T, out=outputs[rows, matrix.shape[0]])

    return work
