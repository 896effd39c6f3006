"""The one scoring function: a packed batch through a causal language model -> log-probs of its response tokens.

Trainer, batch scorer and server all come through here, so the served reward is the evaluated reward by construction.
The model is an argument with the transformers interface (`base_model`, `get_output_embeddings()`, `config`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prm_ray.core.attention import ForestAttention, use_forest_attention
from prm_ray.core.logprobs import token_logprobs
from prm_ray.core.packing import PackedBatch

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
_GROWING_ROPE = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Rotary embeddings that change for all tokens once any sequence is longer than what the config key says."""


def check_model(model: Any) -> None:
    """Raises `ValueError` for an architecture whose packed log-probs would not be exact."""
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"model type {config.model_type!r} has an attention of its own that cannot be packed")
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if strange:
        raise ValueError(f"model type {config.model_type!r} has layers {strange}; only attention layers can be packed")
    for name in ("logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"model type {config.model_type!r} scales its logits ({name}); that is not supported")


def _check_length(config: Any, batch: PackedBatch) -> None:
    longest = int(batch.position_ids_T.max()) + 1
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the model's sliding window of {window}; "
            "its log-probs cannot be computed exactly"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    key = _GROWING_ROPE.get(rope.get("rope_type", ""))
    limit = None if key is None else rope.get(key) or getattr(config, key, None)
    if limit and longest > limit:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the {limit} at which this model's rotary embedding "
            f"({rope['rope_type']}) begins to depend on its companions in the batch"
        )


def response_logprobs(model: Any, batch: PackedBatch) -> Tensor:
    """log p(response token | prompt and earlier response tokens), float32 [R], in the order of `batch.branches`.

    Differentiable in the model's parameters. Each distinct token is computed once, and only positions that predict a
    response token meet the vocabulary.
    """
    _check_length(model.config, batch)
    use_forest_attention(model)
    batch = batch.to(model.device)
    if not len(batch.target_U):
        return torch.zeros(0, device=model.device)
    hidden_TD = model.base_model(
        input_ids=batch.input_ids_T[None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=model.device),  # four dimensions: transformers makes none then
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        forest=ForestAttention(batch.nodes, len(batch.input_ids_T), model.device),
    ).last_hidden_state[0]
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    logprobs_U = token_logprobs(hidden_TD[batch.predictor_U], head.weight, batch.target_U, head.bias, softcap)
    return logprobs_U[batch.source_R]
