"""Runs that end with a small untrained model, for tests of the real server, and a plain client of it."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prm_ray.config import RunConfig, load_config
from prm_ray.models import resolve_model, write_prm_json
from prm_ray.tables import StageFolder
from tests.ports import free_port


@dataclass
class Reply:
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


def save_small_model(folder: Path, seed: int) -> None:
    """Two layers with random weights behind the tokenizer and chat template of the embedded model."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    torch.manual_seed(seed)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.2, **size)
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_run(run_dir: Path, **serve: Any) -> RunConfig:
    """A run that ends with a trained model: the folder the train stage leaves behind, and settings of [serve]."""
    folder = StageFolder(run_dir, "train")
    save_small_model(run_dir / "reference_model", seed=0)
    save_small_model(folder.path, seed=1)
    facts = {"objective": "ce", "beta": 0.1, "reference": str(run_dir / "reference_model"), "step_rule": "newline"}
    write_prm_json(folder.path, facts)
    folder.finish({"stage": "train"})
    path = run_dir / "run.toml"
    path.write_text("[model]\ndtype = 'float32'\n")
    overrides = {"max_candidates": 8, "max_tokens": 1600, "port": free_port(), **serve}
    values = [f"serve.{key}={value}" for key, value in overrides.items()]
    return load_config(path, [f"run.dir={run_dir}", *values])


def call(url: str, body: Any = None, key: str | None = None) -> Reply:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=240) as reply:
            return Reply(reply.status, json.load(reply))
    except urllib.error.HTTPError as error:
        return Reply(error.code, json.load(error), {name.lower(): value for name, value in error.headers.items()})
