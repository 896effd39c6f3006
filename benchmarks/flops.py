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
from torch.nn import functional

from prm_ray.core.logprobs import CHUNK
from prm_ray.core.packing import PackedBatch


def body_matrices(model: Any) -> list[nn.Linear]:
    """The linear layers below the head, in the order they are defined."""
    head = model.get_output_embeddings()
    return [module for module in model.base_model.modules() if isinstance(module, nn.Linear) and module is not head]


def visible_pairs(batch: PackedBatch) -> int:
    """Query-key pairs that see each other: key k of a node is seen by all queries from k to its subtree's end."""
    return sum((node.stop - node.start) * node.end - sum(range(node.start, node.stop)) for node in batch.nodes)


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
    matrices = body_matrices(model)
    weight = matrices[0].weight
    inputs = {
        width: torch.randn(num_tokens, width, dtype=weight.dtype, device=weight.device)
        for width in {matrix.in_features for matrix in matrices}
    }

    @torch.no_grad()
    def work() -> None:
        for matrix in matrices:
            functional.linear(inputs[matrix.in_features], matrix.weight, matrix.bias)

    return work


def head_products(model: Any, num_wanted: int) -> Callable[[], None]:
    """The head's product at so many positions, in the chunks that scoring takes."""
    head_VD: Tensor = model.get_output_embeddings().weight.detach()
    hidden_UD = torch.randn(num_wanted, head_VD.shape[1], dtype=head_VD.dtype, device=head_VD.device)

    def work() -> None:
        for start in range(0, num_wanted, CHUNK):
            _ = hidden_UD[start : start + CHUNK] @ head_VD.T

    return work
