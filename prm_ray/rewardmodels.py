"""Reward models with a head: made from a language model, loaded with what reads them.

A value head is a model for sequence classification with one label, as such reward models are published; label tokens
need no weights of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.core.device import number_format, own_device, placed
from prm_ray.core.forward import Reading, response_logprobs, response_values
from prm_ray.core.heads import LabelTokens, score_head
from prm_ray.damage import not_loaded
from prm_ray.errors import UserError
from prm_ray.models import is_adapter, load_config, load_model, load_tokenizer, resolve_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HEADS = ("value_head", "label_token")


def reading_of(reward: str, label_tokens: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Reading:
    """What training and scoring read at response tokens. Raises `UserError` for a label that is not one token."""
    if reward == "log_ratio":
        return response_logprobs
    if reward == "value_head":
        return partial(response_values, head=score_head)
    right, wrong = (_token_of(word, tokenizer) for word in label_tokens)
    if right == wrong:
        raise UserError(f"train.label_tokens {list(label_tokens)} are one and the same token; they must differ")
    return partial(response_values, head=LabelTokens(right, wrong))


def _token_of(word: str, tokenizer: PreTrainedTokenizerFast) -> int:
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise UserError(f"train.label_tokens {word!r} is {len(ids)} tokens of this tokenizer; it must be one")
    return ids[0]


def load_with_value_head(
    name: str, dtype: str = "auto", trust_remote_code: bool = False, device: str | None = None, seed: int | None = 0
) -> PreTrainedModel:
    """A value head's model in eval mode; over a plain language model a new head, the same for the same seed.

    Raises `UserError` for what does not load or has more than one label; without a seed also for a missing head.
    """
    from transformers import AutoModelForSequenceClassification

    if is_adapter(name):
        raise UserError(f"model {name!r} is an adapter folder; a value head needs a whole model")
    device = device or own_device()
    model, missing = _load_with_head(
        AutoModelForSequenceClassification,
        name,
        number_format(dtype, device),
        num_labels=1,
        trust_remote_code=trust_remote_code,
        key_mapping={"^regression_head": "score"},  # as UltraRM and Eurus-RM are published
    )
    if lacking := [key for key in missing if not key.startswith("score.")]:
        raise UserError(f"model {name!r} is no whole model: its files lack {lacking[0]!r}")
    if missing:
        if seed is None:
            raise UserError(f"model {name!r} has no value head: its files lack {missing[0]!r}")
        _start_head(model, seed)
    if model.config.pad_token_id is None:  # transformers' own forward pass asks for one
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, needs_chat=False)
        model.config.pad_token_id = tokenizer.eos_token_id
    return placed(model, device)


def load_with_process_head(name: str, dtype: str = "auto", device: str | None = None) -> PreTrainedModel:
    """A Qwen2 with the head of Qwen2.5-Math-PRM, two classes behind a hidden layer, in eval mode.

    Published with code of its own, which is not run: the tensors have the names `score.0` and `score.2`. Raises
    `UserError` for what does not load, is no Qwen2, or lacks them.
    """
    from torch import nn
    from transformers import Qwen2ForTokenClassification

    class ProcessRewardModel(Qwen2ForTokenClassification):
        def __init__(self, config: Any):
            super().__init__(config)
            size = config.hidden_size
            self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2))

    kind = load_config(name).model_type
    if kind != "qwen2":
        raise UserError(f"model {name!r} is of type {kind!r}; a head as of Qwen2.5-Math-PRM needs 'qwen2'")
    device = device or own_device()
    model, missing = _load_with_head(ProcessRewardModel, name, number_format(dtype, device))
    if missing:
        raise UserError(f"model {name!r} has no process reward head: its files lack {missing[0]!r}")
    return placed(model, device)


def _load_with_head(auto_class: Any, name: str, dtype: torch.dtype, **options: Any) -> tuple[Any, list[str]]:
    """The model, and which weights its files lack."""
    from safetensors import SafetensorError

    folder = resolve_model(name)
    try:
        model, loading = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise not_loaded(f"model {name!r} does not load with a value head", error, name) from None
    return model, sorted(loading["missing_keys"])


def _start_head(model: Any, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    weight = model.score.weight
    start = torch.randn(weight.shape, generator=generator) * model.config.get_text_config().initializer_range
    weight.data = start.to(weight)


def load_reward_model(
    folder: str | Path, facts: dict[str, Any], dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Reading]:
    """A trained head with its tokenizer and what reads it; `facts` are those of its prm.json."""
    path, tokenizer = str(folder), load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    load = load_with_value_head if facts["reward"] == "value_head" else load_model
    reading = reading_of(facts["reward"], facts.get("label_tokens", ()), tokenizer)
    return load(path, dtype, trust_remote_code), tokenizer, reading
