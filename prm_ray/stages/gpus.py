"""Who computes on which GPU: a worker sees its own alone, and a stage that leaves all of them idle says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ray

from prm_ray.runlog import log

NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of a process that must not see a GPU."""
_LARGE_MODELS = ("warmup", "generate", "train", "score", "search", "processbench")
"""Stages that always compute with one."""


def keep_to_own_gpus() -> None:
    """In a worker, before it computes: hide all GPUs from one that asked for none.

    Ray shows a worker its own GPUs if it has some, and else leaves it with all of the machine, where it would compute
    on what others have been given.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ.update(NO_GPUS)


def say_unused_gpus(stage: str, resources: Mapping[str, Any]) -> None:
    """Whoever has a GPU and does not know the setting would only see a stage that is slow."""
    shares = {key: value for key, value in resources.items() if key.startswith("gpus_per_")}
    num_gpus = ray.cluster_resources().get("GPU", 0)
    if stage in _LARGE_MODELS and num_gpus and not any(shares.values()):
        log.info("%-9s computes on CPUs (%s.%s is 0); Ray has %g GPUs", stage, stage, min(shares), num_gpus)
