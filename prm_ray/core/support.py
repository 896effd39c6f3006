"""Which models can be packed: what is read from their config, then an example scored packed and alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prm_ray.core.forward import causal_lm, response_logprobs, response_values
from prm_ray.core.packing import PromptGroup, pack

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}
_EXAMPLE = PromptGroup((11, 7, 13, 5), ((3, 11, 17, 3, 7), (3, 11, 2, 19, 5), (23, 5, 5, 9, 29)))
_ROUNDING = 1e-4
"""Most by which an example's values may differ from the model's own, as a share of them, in full precision."""
_HALF_ROUNDING = {True: 0.05, False: 0.2}
"""The same in half precision: of log-probs, and of hidden states, which rounding alone moves by 2 to 6 % in trained
models of 30 layers, whichever attention of transformers' own computes them."""


def check_model(model: Any) -> None:
    """Raises `ValueError` for an architecture whose packed log-probs (or, of a model for classification, hidden states)
    would not be exact.

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
    is_lm = model.get_output_embeddings() is not None
    is_half = model.dtype not in (torch.float32, torch.float64)
    if not difference < (_HALF_ROUNDING[is_lm] if is_half else _ROUNDING):
        raise ValueError(
            f"model type {kind!r} cannot be packed: "
            f"values of an example differ by {difference:.2%} from the model's own"
        )


@torch.no_grad()
def _difference_of_example(model: Any) -> float:
    """Mean absolute difference between packed values and the model's own, as a share of these.

    Of a model for classification these are hidden states, for its scores may lie anywhere: near 0, rounding alone would
    be a large share of them.
    """
    (batch,) = pack([_EXAMPLE], token_budget=100)
    responses_RT = torch.tensor([_EXAMPLE.responses[number] for _, number in batch.branches], device=model.device)
    prompts_RT = torch.tensor([_EXAMPLE.prompt] * len(responses_RT), device=model.device)
    is_lm = model.get_output_embeddings() is not None
    implementation, was_training = model.config._attn_implementation, model.training
    model.eval()
    try:
        ours = response_logprobs(model, batch) if is_lm else response_values(model, batch, _hidden_states)
        model.set_attn_implementation("eager")  # knows all of a model's own ways, soft-capped scores for example
        own = (_own_logprobs if is_lm else _own_hidden_states)(model, prompts_RT, responses_RT)
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
    return ((ours - own).abs().mean() / own.abs().mean()).item()


def _own_logprobs(model: Any, prompts_RT: Tensor, responses_RT: Tensor) -> Tensor:
    logits_RTV = model(input_ids=torch.cat([prompts_RT, responses_RT], dim=1), use_cache=False).logits
    table_RTV = logits_RTV[:, prompts_RT.shape[1] - 1 : -1].float().log_softmax(dim=2)
    return table_RTV.gather(2, responses_RT[..., None]).flatten()


def _hidden_states(model: Any, hidden_UE: Tensor) -> Tensor:
    return hidden_UE.float()


def _own_hidden_states(model: Any, prompts_RT: Tensor, responses_RT: Tensor) -> Tensor:
    states = model.base_model(input_ids=torch.cat([prompts_RT, responses_RT], dim=1), use_cache=False)
    return states.last_hidden_state[:, prompts_RT.shape[1] :].flatten(0, 1).float()
