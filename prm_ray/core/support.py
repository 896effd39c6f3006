"""Which models can be packed: what is read from their config, then an example scored packed and alone."""

from __future__ import annotations

from typing import Any

import torch

from prm_ray.core.forward import causal_lm, response_logprobs
from prm_ray.core.packing import PromptGroup, pack

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}
_EXAMPLE = PromptGroup((11, 7, 13, 5), ((3, 11, 17, 3, 7), (3, 11, 2, 19, 5), (23, 5, 5, 9, 29)))
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Most by which an example's log-probs may differ from the model's own, as a share of them; half precision: 5 %."""


def check_model(model: Any) -> None:
    """Raises `ValueError` for an architecture whose packed log-probs would not be exact.

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
