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
from prm_ray.core.packing import PackedBatch, PromptGroup, pack

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}
_GROWING_ROPE = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Rotary embeddings that change for all tokens once any sequence is longer than what the config key says."""
_EXAMPLE = PromptGroup((11, 7, 13, 5), ((3, 11, 17, 3, 7), (3, 11, 2, 19, 5), (23, 5, 5, 9, 29)))
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Most by which an example's log-probs may differ from the model's own, as a share of them; half precision: 5 %."""


def check_model(model: Any) -> None:
    """Raises `ValueError` for an architecture whose packed log-probs would not be exact.

    What the config tells is read from there. Then a few tokens are scored packed and alone, the latter by the model's
    own forward pass: so a model that works in an unknown way is refused, never scored wrongly.
    """
    kind, config = model.config.model_type, model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"model type {kind!r} does not let its attention be exchanged, so it cannot be packed")
    layers = getattr(config, "layer_types", None) or getattr(config, "block_types", None) or ()
    strange = sorted(set(layers) - _ATTENTION_LAYERS)
    if strange:
        raise ValueError(f"model type {kind!r} has layers {strange}; only attention layers can be packed")
    difference = _difference_of_example(model)
    if not difference < _ROUNDING.get(model.dtype, 0.05):
        raise ValueError(
            f"model type {kind!r} cannot be packed: log-probs of an example differ by {difference:.2%} "
            "from the model's own"
        )


@torch.no_grad()
def _difference_of_example(model: Any) -> float:
    """Mean absolute difference between packed log-probs and the model's own, as a share of these."""
    (batch,) = pack([_EXAMPLE], token_budget=100)
    responses_RT = torch.tensor([_EXAMPLE.responses[number] for _, number in batch.branches], device=model.device)
    prompts_RT = torch.tensor([_EXAMPLE.prompt] * len(responses_RT), device=model.device)
    implementation, was_training = model.config._attn_implementation, model.training
    model.eval()
    try:
        ours_R = response_logprobs(model, batch)
        model.set_attn_implementation("eager")  # knows all of a model's own ways, soft-capped scores for example
        logits_RTV = model(input_ids=torch.cat([prompts_RT, responses_RT], dim=1), use_cache=False).logits
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
    table_RTV = logits_RTV[:, len(_EXAMPLE.prompt) - 1 : -1].float().log_softmax(dim=2)
    own_R = table_RTV.gather(2, responses_RT[..., None]).flatten()
    return ((ours_R - own_R).abs().mean() / own_R.abs().mean()).item()


def _check_length(config: Any, batch: PackedBatch) -> None:
    longest = int(batch.position_ids_T.max()) + 1
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the model's sliding window of {window}; "
            "its log-probs cannot be computed exactly"
        )
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, dict))]:  # one, or one a kind of layer
        key = _GROWING_ROPE.get(rope.get("rope_type", ""))
        limit = None if key is None else rope.get(key) or getattr(config, key, None)
        if limit and longest > limit:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than the {limit} at which this model's rotary embedding "
                f"({rope['rope_type']}) begins to depend on its companions in the batch"
            )


def _logit_scale(config: Any) -> float:
    """What logits are multiplied by: Cohere's `logit_scale`, one over Granite's `logits_scaling`."""
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)


def response_logprobs(model: Any, batch: PackedBatch) -> Tensor:
    """log p(response token | prompt and earlier response tokens), float32 [R], in the order of `batch.branches`.

    Differentiable in the model's parameters. Each distinct token is computed once, and only positions that predict a
    response token meet the vocabulary.
    """
    config = model.config.get_text_config()
    _check_length(config, batch)
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
    head, scale = model.get_output_embeddings(), _logit_scale(config)
    hidden_UD = hidden_TD[batch.predictor_U] if scale == 1 else hidden_TD[batch.predictor_U] * scale
    softcap = getattr(config, "final_logit_softcapping", None)
    return token_logprobs(hidden_UD, head.weight, batch.target_U, head.bias, softcap)[batch.source_R]
