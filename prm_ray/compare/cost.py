"""What it took to make a reward model, in floating-point operations, from the manifests of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from prm_ray.core.compute import run_flops
from prm_ray.tables import StageFolder, read_parquet


@dataclass(frozen=True)
class Cost:
    collect: float
    """Sampling the training responses; 0 where they were made elsewhere."""
    label: float
    """Labelling their steps; 0 where that is not done."""
    train: float
    """The reference's log-probs of the training responses, and training."""

    @property
    def total(self) -> float:
        return self.collect + self.label + self.train


def training_cost(folder: Path) -> Cost | None:
    """Cost of the run in a folder; None where a manifest does not tell, as those of older versions."""
    stages = [StageFolder(folder, stage) for stage in ("generate", "reference", "step_label", "train")]
    flops = run_flops({stage.stage: stage.manifest() for stage in stages if stage.is_done()})
    if "train" not in flops or None in flops.values():
        return None
    share = _training_share(StageFolder(folder, "reference"))
    return Cost(
        collect=share * (flops.get("generate") or 0.0),
        label=flops.get("step_label") or 0.0,
        train=(flops["train"] or 0.0) + share * (flops.get("reference") or 0.0),
    )


def _training_share(responses: StageFolder) -> float:
    """Share of the response tokens that belongs to training problems."""
    tokens = {"train": 0, "test": 0}
    for part in responses.finished_parts():
        table = read_parquet(responses.part_path(part), ["split", "response_tokens"])
        for split in tokens:
            lengths = pc.list_value_length(table.filter(pc.equal(table["split"], split))["response_tokens"])
            tokens[split] += pc.sum(lengths).as_py() or 0
    return tokens["train"] / max(1, sum(tokens.values()))
