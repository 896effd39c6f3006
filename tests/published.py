"""Tiny random reward models whose files are laid out as the published ones'."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from prm_ray.models import load_tokenizer
from tests.tiny import SPECIAL, save_tiny_model

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def save_published(folder: Path, style: str, pad_is_end_of_turn: bool = False) -> str:
    """Files as the style's model is published with; a byte-level tokenizer that knows the words of all styles."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    tokenizer = load_tokenizer(save_tiny_model(folder / "tokenizer"))
    tokenizer.add_tokens([" ки", " +", " -"])
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)
    if style == "math_shepherd":
        tokenizer.chat_template = None
    torch.manual_seed(5)
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": None}
    if style == "value_head":
        end = tokenizer.convert_tokens_to_ids(SPECIAL[0])
        labelled = sizes | {"num_labels": 1, "pad_token_id": end if pad_is_end_of_turn else None}
        LlamaForSequenceClassification(LlamaConfig(**labelled)).save_pretrained(folder)
    elif style == "math_shepherd":
        MistralForCausalLM(MistralConfig(**sizes)).save_pretrained(folder)
    elif style == "rlhflow":
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    else:
        Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(folder)
        add_process_head(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def add_process_head(folder: Path) -> None:
    """Qwen2.5-Math-PRM's own class, as far as its files go: two linear layers, and code that nobody is to run."""
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if "lm_head" not in name}
    size = SIZES["hidden_size"]
    for name, rows in (("score.0", size), ("score.2", 2)):
        tensors |= {f"{name}.weight": 0.3 * torch.randn(rows, size), f"{name}.bias": 0.3 * torch.randn(rows)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen2ForProcessRewardModel"]
    config["auto_map"] = {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_qwen2_rm.py").write_text("raise SystemExit('remote code was run')\n")
    (folder / "configuration_qwen2_rm.py").write_text("raise SystemExit('remote code was run')\n")
