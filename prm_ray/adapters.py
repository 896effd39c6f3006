"""LoRA adapters by the `peft` library: an adapter over a base model, trained and stored in place of the whole model.

The base, with the adapter off, is the reference: one model in memory is both (`core.forward` scores both in one pass).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.damage import why_not
from prm_ray.errors import UserError
from prm_ray.modelcache import local_copy, named_from

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterSettings:
    """What a new adapter is: W + alpha / rank * B A, with B = 0 at the start (arXiv 2106.09685)."""

    rank: int
    alpha: float
    targets: Sequence[str] = ()
    """Ends of the names of linear layers; none = every linear layer but the output layer."""


def adapter_base(folder: str | Path) -> str | None:
    """The base model under an adapter folder; None for any other name.

    `prm.json` is asked first: it names a folder from where it is, so both can move; `peft` writes where the base was.
    """
    config, prm = Path(folder) / CONFIG_FILE, Path(folder) / "prm.json"
    if not config.is_file():
        return None
    facts = json.loads(prm.read_text(encoding="utf-8")) if prm.is_file() else {}
    if "base" in facts:
        base = (Path(folder) / facts["base"]).resolve()
        return str(base) if base.is_dir() else local_copy(named_from(folder, facts["base"]))
    return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]


def has_adapter(model: Any) -> bool:
    return hasattr(model, "get_base_model")


def add_adapter(model: PreTrainedModel, settings: AdapterSettings, seed: int) -> Any:
    """Put a new adapter over the model, which freezes all else; the same seed gives every worker the same one."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(settings.targets) or "all-linear",
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def load_adapter(model: PreTrainedModel, folder: str) -> Any:
    """The stored adapter over its base, in the base's number format, frozen."""
    _need_peft(f"adapter folder {folder!r}")
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"adapter folder {folder!r} does not fit its base model: {why_not(folder, error)}") from None


def save_weights(model: Any, folder: Path, tensors: dict[str, Tensor] | None, dtype: torch.dtype) -> None:
    """Write a plain Hugging Face model folder, or an adapter folder; `tensors` stand in for the model's own state."""
    if has_adapter(model):
        _save_adapter(model, folder, tensors)
        return
    model.save_pretrained(folder, state_dict=tensors)
    model.config.dtype = dtype  # what was written, not the masters' in the model
    model.config.save_pretrained(folder)


def check_adapter(model: str, settings: AdapterSettings, trust_remote_code: bool = False) -> None:
    """Raises `UserError` if `peft` is not installed, or a target is no linear layer of the model.

    Reads the model's config only, no weights.
    """
    _need_peft("train.lora_rank")
    if not settings.targets:
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head = empty.get_output_embeddings()
    names = {
        name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    }
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise UserError(f"train.lora_targets {target!r} must be a linear layer inside model {model!r}: {ends}")


def _save_adapter(model: Any, folder: Path, tensors: dict[str, Tensor] | None) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / WEIGHTS_FILE)
    config = model.peft_config[model.active_adapter]
    config.inference_mode = True
    config.save_pretrained(folder)


def _need_peft(what: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{what} needs the package peft: pip install 'prm-ray[lora]'")
