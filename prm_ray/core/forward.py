"""The one scoring function: a packed batch through a causal language model -> log-probs of its response tokens.

Trainer, batch scorer and server all come through here, so the served reward is the evaluated reward by construction.
The model is an argument with the transformers interface (`base_model`, `get_output_embeddings()`, `config`), or such a
model under an adapter of the `peft` library; with the adapter off that is a second model, for the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prm_ray.core.attention import use_forest_attention
from prm_ray.core.forest import ForestAttention
from prm_ray.core.logprobs import token_logprobs
from prm_ray.core.packing import PackedBatch
from prm_ray.core.past import Past
from prm_ray.core.prefixcache import PrefixCache

Reading = Callable[[Any, PackedBatch], Tensor]
"""A model and a packed batch -> float32 [R], a number a response token: `response_logprobs`, or what a head says."""

_GROWING_ROPE = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Rotary embeddings that change for all tokens once any sequence is longer than what the config key says."""


def causal_lm(model: Any) -> Any:
    """The transformers model itself, with the layers of an adapter in it if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def length_limits(config: Any) -> dict[str, int]:
    """What limits a model -> the longest sequence, in tokens, whose values are exact when it is packed."""
    limits: dict[str, int] = {}
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        limits[f"sliding window of {window}"] = window
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, dict))]:  # one, or one a kind of layer
        key = _GROWING_ROPE.get(rope.get("rope_type", ""))
        if key is not None and (limit := rope.get(key) or getattr(config, key, None)):
            kind = rope["rope_type"]
            limits[f"limit of {limit}, where its rotary embedding ({kind}) begins to depend on texts beside it"] = limit
    return limits


def _check_length(config: Any, batch: PackedBatch) -> None:
    longest = int(batch.position_ids_T.max()) + 1
    for what, limit in length_limits(config).items():
        if longest > limit:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than the model's {what}; "
                "its log-probs cannot be computed exactly"
            )


def logit_scale(config: Any) -> float:
    """What logits are multiplied by: Cohere's `logit_scale`, one over Granite's `logits_scaling`."""
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)


def response_logprobs(model: Any, batch: PackedBatch) -> Tensor:
    """log p(response token | prompt and earlier response tokens), float32 [R], in the order of `batch.branches`.

    Differentiable in the model's parameters. Each distinct token is computed once, and only positions that predict a
    response token meet the vocabulary.
    """
    return _logprobs_BR(causal_lm(model), batch, 1)[0]


def response_values(model: Any, batch: PackedBatch, head: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """What `head` (see `heads.py`) makes of the hidden state *at* each response token, float32 [R]; differentiable.

    `model` may be one for classification: anything with `base_model`.
    """
    model = causal_lm(model)
    batch = batch.to(model.device)
    if not len(batch.place_U):
        return torch.zeros(0, device=model.device)
    hidden_UE = _hidden_BTE(model, batch, 1)[0, batch.place_U]
    return head(model, hidden_UE)[batch.source_R]


def policy_and_reference_logprobs(model: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """`response_logprobs` with the model's adapter on, and with it off, [R] each: two rows of one forward pass.

    `model` is a `PeftModel` in eval mode. The rows share every product with the base's weights; not for training.
    """
    with torch.no_grad(), model._enable_peft_forward_hooks(adapter_names=[model.active_adapter, "__base__"]):
        policy_R, reference_R = _logprobs_BR(causal_lm(model), batch, 2)
    return policy_R, reference_R


@torch.no_grad()
def cached_response_logprobs(cache: PrefixCache, batch: PackedBatch) -> Tensor:
    """`response_logprobs` of a batch packed behind what `cache` holds (`pack_lazily`, its `find`), in `cache.use()`.

    Only tokens that the cache lacks go through its model, and they are added to it.
    """
    model = causal_lm(cache.model)
    batch = batch.to(model.device)
    if not len(batch.target_U):
        return torch.zeros(0, device=model.device)
    with cache.room_for(batch) as past:
        hidden_TE = None
        if len(batch.input_ids_T):
            hidden_TE = _hidden_BTE(model, batch, 1, past)[0]
            past.store_hidden(hidden_TE)
        logprobs_U = past.known_logprobs()
        missing = logprobs_U.isnan().nonzero().squeeze(1)
        if len(missing):
            hidden_UE = past.predictors(hidden_TE, missing)
            logprobs_U[missing] = _target_logprobs(model, hidden_UE, batch.target_U[missing])
            past.store_logprobs(logprobs_U)
    return logprobs_U[batch.source_R]


def _logprobs_BR(model: Any, batch: PackedBatch, num_rows: int) -> Tensor:
    """The same batch in `num_rows` rows, which only an adapter can tell apart."""
    batch = batch.to(model.device)
    if not len(batch.target_U):
        return torch.zeros(num_rows, 0, device=model.device)
    hidden_UE = _hidden_BTE(model, batch, num_rows)[:, batch.predictor_U].flatten(0, 1)
    logprobs_U = _target_logprobs(model, hidden_UE, batch.target_U.repeat(num_rows))
    return logprobs_U.view(num_rows, -1)[:, batch.source_R]


def _hidden_BTE(model: Any, batch: PackedBatch, num_rows: int, past: Past | None = None) -> Tensor:
    """What the output layer gets."""
    _check_length(model.config.get_text_config(), batch)
    use_forest_attention(model)
    return model.base_model(
        input_ids=batch.input_ids_T.expand(num_rows, -1),
        attention_mask=torch.zeros(1, 1, 1, 1, device=model.device),  # four dimensions: transformers makes none then
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        forest=ForestAttention(batch.nodes, len(batch.input_ids_T), model.device, past),
    ).last_hidden_state


def _target_logprobs(model: Any, hidden_UE: Tensor, target_U: Tensor) -> Tensor:
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    scale, softcap = logit_scale(config), getattr(config, "final_logit_softcapping", None)
    hidden_UE = hidden_UE if scale == 1 else hidden_UE * scale
    return token_logprobs(hidden_UE, head.weight, target_U, head.bias, softcap)
