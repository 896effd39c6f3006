"""Who computes on which GPU: a worker sees its own alone, and a stage that leaves all of them idle says so."""

from __future__ import annotations

import os

import ray

from prm_ray.config import RunConfig
from prm_ray.runlog import log

NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of a process that must not see a GPU."""


def keep_to_own_gpus() -> None:
    """In a worker, before it computes: hide all GPUs from one that asked for none.

    Ray shows a worker its own GPUs if it has some, and else leaves it with all of the machine, where it would compute
    on what others have been given.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ.update(NO_GPUS)


def say_unused_gpus(config: RunConfig, stage: str) -> None:
    """Whoever has a GPU and does not know the setting would only see a stage, or a server, that is slow."""
    num_gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    shares = {key: value for key, value in config.section(stage).model_dump().items() if key.startswith("gpus_per_")}
    if not num_gpus or not _computes(config, stage):
        return
    for key in (key for key, value in shares.items() if not value):
        log.info("%-9s computes on CPUs where %s.%s is 0; Ray has %g GPUs", stage, stage, key, num_gpus)


def _computes(config: RunConfig, stage: str) -> bool:
    """With a model of ours, in workers that have a setting of the stage's own for GPUs."""
    is_idle = {
        "generate": ":" in config.generate.backend,
        "reference": config.reference.logprobs != "compute",
        "step_label": config.step_label.method != "confidence",
    }
    return not is_idle.get(stage, False)
