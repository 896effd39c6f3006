"""What it took to make a reward model, in floating-point operations, from the manifests of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from prm_ray.core.compute import run_flops
from prm_ray.parquetfiles import read_parquet
from prm_ray.tables import StageFolder


@dataclass(frozen=True)
class Cost:
    collect: float
    """Sampling the training responses; 0 where they were made elsewhere."""
    label: float
    """Labelling their steps, the training of the verifier that does it included; 0 where that is not done."""
    train: float
    """Training, the run that it starts from included, and the reference's log-probs where training uses them."""

    @property
    def total(self) -> float:
        return self.collect + self.label + self.train


def training_cost(folder: Path) -> Cost | None:
    """Cost of the run in a folder; None where a manifest does not tell, as those of older versions."""
    stages = [StageFolder(folder, stage) for stage in ("generate", "reference", "step_label", "train")]
    manifests = {stage.stage: stage.manifest() for stage in stages if stage.is_done()}
    flops = run_flops(manifests)
    if "train" not in flops or None in flops.values():
        return None
    settings = {key: value for manifest in manifests.values() for key, value in manifest["identity"].items()}
    verifier, start = _trained_by(settings.get("step_label.verifier")), _trained_by(settings.get("train.start"))
    if verifier is None or start is None:
        return None
    share = _training_share(StageFolder(folder, "reference"))
    uses_reference = settings.get("train.reward", "log_ratio") == "log_ratio" and settings.get(
        "train.with_reference", True
    )
    reference = share * (flops.get("reference") or 0.0) if uses_reference else 0.0
    return Cost(
        collect=share * (flops.get("generate") or 0.0),
        label=(flops.get("step_label") or 0.0) + verifier,
        train=(flops["train"] or 0.0) + reference + start,
    )


def _trained_by(checkpoint: str | None) -> float | None:
    """What it took to train another run's checkpoint on responses that this run has too; 0 for none, or a model that
    was not trained here; None where its run does not tell."""
    if checkpoint is None or not StageFolder(Path(checkpoint).parent, "train").is_done():
        return 0.0
    cost = training_cost(Path(checkpoint).parent)
    return None if cost is None else cost.train


def _training_share(responses: StageFolder) -> float:
    """Share of the response tokens that belongs to training problems."""
    tokens = {"train": 0, "test": 0}
    for part in responses.finished_parts():
        table = read_parquet(responses.part_path(part), ["split", "response_tokens"])
        for split in tokens:
            lengths = pc.list_value_length(table.filter(pc.equal(table["split"], split))["response_tokens"])
            tokens[split] += pc.sum(lengths).as_py() or 0
    return tokens["train"] / max(1, sum(tokens.values()))
