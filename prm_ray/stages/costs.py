"""What a run cost: operations of each stage, and scoring as a share of generating, from the manifests alone."""

from __future__ import annotations

from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.compute import run_flops
from prm_ray.tables import StageFolder


def read_manifests(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Stage -> manifest of every finished stage of the chain, in order."""
    folders = [StageFolder(config.run.dir, stage) for stage in config.stages()]
    return {folder.stage: folder.manifest() for folder in folders if folder.is_done()}


def stage_rows(config: RunConfig) -> list[dict[str, Any]]:
    """What each finished stage before the report took in, made, lost and cost."""
    manifests = read_manifests(config)
    manifests.pop("evaluate", None)
    flops = run_flops(manifests)
    rows = []
    for stage, manifest in manifests.items():
        seconds, tokens = manifest.get("seconds"), manifest.get("tokens") or 0
        rows.append(
            {
                "stage": stage,
                "rows_in": manifest.get("rows_in"),
                "rows_out": manifest.get("rows_out"),
                "failed": manifest.get("failed") or {},
                "left_out": manifest.get("details", {}).get("selection", {}).get("left_out", {}),
                "seconds": seconds,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds if seconds and tokens else None,
                "flops": flops[stage],
                "code_revision": manifest.get("code_revision"),
            }
        )
    return rows


def scoring_cost(config: RunConfig) -> dict[str, Any] | None:
    """Time of scoring a response token as a share of the time of generating one (arXiv 2412.01981 Table 4).

    By response token, because the two stages handle different splits. GPU-seconds where a stage has GPUs, else seconds
    of the machine; starting up and loading the model are in both. The reference counts where rewards use it, and costs
    nothing where its log-probs came with the samples. None where nothing was generated here, or a stage's seconds are
    not known for all its tokens: it went on after a kill, or had GPUs while the other had none.
    """
    manifests = read_manifests(config)
    used = ["generate", "score"]
    if config.reward == "log_ratio" and config.score.with_reference and config.reference.logprobs == "compute":
        used.append("reference")
    if not all(_is_timed(manifests.get(stage)) for stage in used):
        return None
    if len({bool(_gpus(manifests[stage])) for stage in used}) > 1:
        return None
    seconds = {stage: _seconds_per_token(manifests[stage]) for stage in used}
    shares = {stage: seconds[stage] / seconds["generate"] for stage in used[1:]}
    return {
        "seconds_per_1000_tokens": {stage: 1000 * value for stage, value in seconds.items()},
        "on_gpus": bool(_gpus(manifests["generate"])),
        "policy": shares["score"],
        "reference": shares.get("reference", 0.0),
        "total": sum(shares.values()),
    }


def _is_timed(manifest: dict[str, Any] | None) -> bool:
    if not manifest or manifest.get("resumed"):
        return False
    return bool(manifest.get("seconds") and manifest.get("tokens"))


def _gpus(manifest: dict[str, Any]) -> float:
    """GPUs over all the stage's processes; 0 also for a manifest that is too old to say."""
    how = manifest.get("resources") or {}
    processes = how.get("num_engines", how.get("num_workers", 1))
    return processes * how.get("gpus_per_engine", how.get("gpus_per_worker", 0))


def _seconds_per_token(manifest: dict[str, Any]) -> float:
    return manifest["seconds"] * (_gpus(manifest) or 1) / manifest["tokens"]
