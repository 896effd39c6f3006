"""The one scoring function: a packed batch through a causal language model -> log-probs of its response tokens.

Trainer, batch scorer and server all come through here, so the served reward is the evaluated reward by construction.
The model is an argument with the transformers interface (`base_model`, `get_output_embeddings()`, `config`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prm_ray.core.logprobs import token_logprobs
from prm_ray.core.packing import PackedBatch

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def check_model(config: Any) -> None:
    """Raises `ValueError` for an architecture whose packed log-probs would not be exact."""
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if strange:
        raise ValueError(f"model type {config.model_type!r} has layers {strange}; only attention layers can be packed")
    for name in ("logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"model type {config.model_type!r} scales its logits ({name}); that is not supported")


def _check_window(config: Any, batch: PackedBatch) -> None:
    window = getattr(config, "sliding_window", None)
    longest = int(batch.position_ids_GT.max()) + 1
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the model's sliding window of {window}; "
            "its log-probs cannot be computed exactly"
        )


def response_logprobs(model: Any, batch: PackedBatch) -> Tensor:
    """log p(response token | prompt and earlier response tokens), float32 [R], in the order of `batch.branches`.

    Differentiable in the model's parameters. Only positions that predict a response token meet the vocabulary.
    """
    _check_window(model.config, batch)
    batch = batch.to(model.device)
    hidden_GTD = model.base_model(
        input_ids=batch.input_ids_GT,
        attention_mask=batch.mask_G1TT,
        position_ids=batch.position_ids_GT,
        use_cache=False,
    ).last_hidden_state
    hidden_RD = hidden_GTD.flatten(0, 1)[batch.predictor_R]
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return token_logprobs(hidden_RD, head.weight, batch.target_R, head.bias, softcap)
