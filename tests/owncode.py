"""A tiny model whose config, class and tokenizer are code in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import save_tiny_model

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
CLASSES = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
TOKENIZER = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}}


def save_model_with_own_code(folder: Path, **options: Any) -> str:
    """It computes what the tiny model of the same options does."""
    save_tiny_model(folder, **options)
    (folder / "own_code.py").write_text(CODE)
    _change(folder / "config.json", {"model_type": "own_llama", "auto_map": CLASSES})
    _change(folder / "tokenizer_config.json", TOKENIZER)
    return str(folder)


def _change(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
