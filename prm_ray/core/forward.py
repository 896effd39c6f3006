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
from prm_ray.core.past import Past
from prm_ray.core.prefixcache import PrefixCache

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
    batch = batch.to(model.device)
    if not len(batch.target_U):
        return torch.zeros(0, device=model.device)
    hidden_TE = _hidden_states(model, batch)
    return _token_logprobs(model, hidden_TE[batch.predictor_U], batch.target_U)[batch.source_R]


@torch.no_grad()
def cached_response_logprobs(cache: PrefixCache, batch: PackedBatch) -> Tensor:
    """The same for a batch packed behind what `cache` holds (`pack_lazily` with its `find`), within `cache.use()`.

    Only tokens that the cache lacks go through its model, and they are added to it.
    """
    model = cache.model
    batch = batch.to(model.device)
    if not len(batch.target_U):
        return torch.zeros(0, device=model.device)
    with cache.room_for(batch) as past:
        hidden_TE = _hidden_states(model, batch, past) if len(batch.input_ids_T) else None
        logprobs_U = past.known_logprobs()
        missing = logprobs_U.isnan().nonzero().squeeze(1)
        if len(missing):
            logprobs_U[missing] = _token_logprobs(model, past.predictors(hidden_TE, missing), batch.target_U[missing])
            past.store_logprobs(logprobs_U)
    return logprobs_U[batch.source_R]


def _hidden_states(model: Any, batch: PackedBatch, past: Past | None = None) -> Tensor:
    """What the output layer gets, [T, E]."""
    _check_length(model.config, batch)
    use_forest_attention(model)
    hidden_TE = model.base_model(
        input_ids=batch.input_ids_T[None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=model.device),  # four dimensions: transformers makes none then
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        forest=ForestAttention(batch.nodes, len(batch.input_ids_T), model.device, past),
    ).last_hidden_state[0]
    if past is not None:
        past.store_hidden(hidden_TE)
    return hidden_TE


def _token_logprobs(model: Any, hidden_UE: Tensor, target_U: Tensor) -> Tensor:
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return token_logprobs(hidden_UE, head.weight, target_U, head.bias, softcap)
