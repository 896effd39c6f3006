"""The one place that starts or joins Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import ray

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.runlog import log

_OBJECT_STORE_BYTES = 400 * 1024 * 1024
"""Enough for a local Ray: the stages hand each other files, only shard numbers and counts travel as objects."""

PROXY_SETTING = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "prm_ray.serve.proxy.middlewares")
"""Environment variable of the machines of a cluster, and its value, for the server: a proxy of Ray Serve has its
environment from what started Ray, which may be a stage in the same process."""

_SHOW_RAY = "PRM_RAY_SHOW_RAY"
"""Environment variable: set it to see what Ray and its workers print; their log files hold it anyway."""


_LARGE_MODELS = ("warmup", "generate", "train", "score", "search", "processbench")
"""Stages that always compute with one."""


def start_ray(config: RunConfig) -> None:
    """Join the cluster named by RAY_ADDRESS (a submitted job has it set), else start a local Ray; idempotent.

    A local Ray has at least 8 logical CPUs: they only count actors, and small helpers must never wait for one.
    Raises `UserError` if RAY_ADDRESS leads nowhere.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        if address.startswith(("http://", "https://")):
            raise UserError(
                f"RAY_ADDRESS {address!r} is a dashboard's, which prm-ray submit sends jobs to: to work on that "
                "cluster from here it must be its head's own address (HOST:6379)"
            )
        try:
            ray.init(address=address, logging_level="WARNING")
        except ConnectionError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"RAY_ADDRESS {address!r} must be a running Ray cluster: {reason}") from None
        log.info("joined the Ray cluster at %s", address)
        return
    # Ray gives its workers nice 15: beside any other load they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault(*PROXY_SETTING)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own notes about healthy pools, on our stderr
    logging.getLogger("ray").setLevel(logging.ERROR)
    num_cpus = config.run.num_cpus or max(8, os.cpu_count() or 1)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=bool(os.environ.get(_SHOW_RAY)),
    )


def check_room(what: str, num_cpus: float, num_gpus: float, num_workers: int = 1) -> None:
    """See that the machines can hold so many workers of `what`, so that nothing waits silently for resources that never
    come.

    A local Ray without room is a `UserError`; a cluster may still grow, so there it is a warning.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_num_workers(node, num_cpus, num_gpus) for node in nodes)
    if room >= num_workers:
        return
    have = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    each = "" if num_workers == 1 else f" for each of {num_workers} workers"
    message = f"{what} needs {num_cpus:g} CPUs and {num_gpus:g} GPUs on one machine{each}, the machines have {have}"
    if not os.environ.get("RAY_ADDRESS"):
        raise UserError(message)
    log.warning("%s: waiting for the cluster to grow", message)


def say_unused_gpus(stage: str, resources: Mapping[str, Any]) -> None:
    """Whoever has a GPU and does not know the setting would only see a stage that is slow."""
    shares = {key: value for key, value in resources.items() if key.startswith("gpus_per_")}
    num_gpus = ray.cluster_resources().get("GPU", 0)
    if stage in _LARGE_MODELS and num_gpus and not any(shares.values()):
        log.info("%-9s computes on CPUs (%s.%s is 0); Ray has %g GPUs", stage, stage, min(shares), num_gpus)


NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of a process that must not see a GPU."""


def keep_to_own_gpus() -> None:
    """In a worker, before it computes: hide all GPUs from one that asked for none.

    Ray shows a worker its own GPUs if it has some, and else leaves it with all of the machine, where it would compute
    on what others have been given.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ.update(NO_GPUS)


def _num_workers(node: dict[str, float], num_cpus: float, num_gpus: float) -> int:
    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    return min((int(node.get(name, 0) / each + 1e-9) for name, each in wanted.items() if each), default=1)
