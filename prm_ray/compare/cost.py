"""What it took to make a reward model, in floating-point operations: from the manifests of its run.

2 P operations a token that a model of P parameters only reads or writes, 6 P a token that it is trained on (Kaplan et
al. 2020, arXiv 2001.08361). Tokens are those of responses, as the manifests count them; prompts are left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
from safetensors import safe_open

from prm_ray.tables import StageFolder, read_parquet

_STEP_LABELS = "step_labels"
"""Folder of the stage that labels steps, in runs that have it."""


@dataclass(frozen=True)
class Cost:
    collect: float
    """Sampling the training responses; 0 where they were made elsewhere."""
    label: float
    """Labelling their steps; 0 where that is not done."""
    train: float

    @property
    def total(self) -> float:
        return self.collect + self.label + self.train


def training_cost(folder: Path) -> Cost | None:
    """Cost of the run in a folder; None where its checkpoint is not there, or is an adapter without its base."""
    checkpoint = StageFolder(folder, "train")
    parameters = _num_parameters(checkpoint.path)
    if not parameters or not checkpoint.is_done():
        return None
    step_labels = folder / _STEP_LABELS / "manifest.json"
    labelled = json.loads(step_labels.read_text(encoding="utf-8"))["tokens"] if step_labels.is_file() else 0
    return Cost(
        collect=2.0 * parameters * _sampled_tokens(StageFolder(folder, "generate")),
        label=2.0 * parameters * labelled,
        train=6.0 * parameters * checkpoint.manifest()["tokens"],
    )


def _num_parameters(checkpoint: Path) -> int:
    """From the headers of the weight files; nothing is loaded."""
    total = 0
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, framework="np") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _sampled_tokens(responses: StageFolder) -> int:
    """Tokens of the responses to training problems."""
    total = 0
    for part in responses.finished_parts():
        table = read_parquet(responses.part_path(part), ["split", "response_tokens"])
        lengths = pc.list_value_length(table.filter(pc.equal(table["split"], "train"))["response_tokens"])
        total += pc.sum(lengths).as_py() or 0
    return total
