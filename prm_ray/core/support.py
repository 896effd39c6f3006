"""Which models can be packed: what is read from their config, then an example scored packed and alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prm_ray.core.forward import causal_lm, response_logprobs, response_values
from prm_ray.core.heads import score_head
from prm_ray.core.packing import PromptGroup, pack

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}
_EXAMPLE = PromptGroup((11, 7, 13, 5), ((3, 11, 17, 3, 7), (3, 11, 2, 19, 5), (23, 5, 5, 9, 29)))
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Most by which an example's values may differ from the model's own, as a share of them; half precision: 5 %."""


def check_model(model: Any) -> None:
    """Raises `ValueError` for an architecture whose packed log-probs (or scores, of a model for classification) would
    not be exact.

    What the config tells is read from there. Then a few tokens are scored packed and alone, the latter by the model's
    own forward pass: so a model that works in an unknown way is refused, never scored wrongly.
    """
    model = causal_lm(model)
    kind, config = model.config.model_type, model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"model type {kind!r} does not let its attention be exchanged, so it cannot be packed")
    layers = getattr(config, "layer_types", None) or getattr(config, "block_types", None) or ()
    strange = sorted(set(layers) - _ATTENTION_LAYERS)
    if strange:
        raise ValueError(f"model type {kind!r} has layers {strange}; only attention layers can be packed")
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise ValueError("an adapter on the output layer is not supported: its weight is read, not called")
    difference = _difference_of_example(model)
    if not difference < _ROUNDING.get(model.dtype, 0.05):
        raise ValueError(
            f"model type {kind!r} cannot be packed: "
            f"values of an example differ by {difference:.2%} from the model's own"
        )


@torch.no_grad()
def _difference_of_example(model: Any) -> float:
    """Mean absolute difference between packed values and the model's own, as a share of these."""
    (batch,) = pack([_EXAMPLE], token_budget=100)
    responses_RT = torch.tensor([_EXAMPLE.responses[number] for _, number in batch.branches], device=model.device)
    prompts_RT = torch.tensor([_EXAMPLE.prompt] * len(responses_RT), device=model.device)
    is_lm = model.get_output_embeddings() is not None
    implementation, was_training = model.config._attn_implementation, model.training
    model.eval()
    try:
        ours_R = response_logprobs(model, batch) if is_lm else response_values(model, batch, score_head)
        model.set_attn_implementation("eager")  # knows all of a model's own ways, soft-capped scores for example
        own_R = (_own_logprobs if is_lm else _own_scores)(model, prompts_RT, responses_RT)
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
    return ((ours_R - own_R).abs().mean() / own_R.abs().mean()).item()


def _own_logprobs(model: Any, prompts_RT: Tensor, responses_RT: Tensor) -> Tensor:
    logits_RTV = model(input_ids=torch.cat([prompts_RT, responses_RT], dim=1), use_cache=False).logits
    table_RTV = logits_RTV[:, prompts_RT.shape[1] - 1 : -1].float().log_softmax(dim=2)
    return table_RTV.gather(2, responses_RT[..., None]).flatten()


def _own_scores(model: Any, prompts_RT: Tensor, responses_RT: Tensor) -> Tensor:
    states = model.base_model(input_ids=torch.cat([prompts_RT, responses_RT], dim=1), use_cache=False)
    return score_head(model, states.last_hidden_state[:, prompts_RT.shape[1] :].flatten(0, 1))
