"""The one place that starts or joins Ray, and sees that there is room on it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
_ROUNDING = 1e-9


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


@dataclass(frozen=True)
class Wanted:
    """So many workers of one kind; `num_gpus` below 1 is a part of one GPU."""

    what: str
    num_cpus: float
    num_gpus: float
    num_workers: int = 1

    def __str__(self) -> str:
        each = "" if self.num_workers == 1 else f" for each of {self.num_workers} workers"
        return f"{self.what} needs {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs on one machine{each}"


class _Room:
    """What of one machine is free yet."""

    def __init__(self, resources: Mapping[str, float]):
        self._cpus = resources.get("CPU", 0.0)
        self._gpus = [1.0] * int(resources.get("GPU", 0))

    def take(self, wanted: Wanted) -> bool:
        """Place one worker here, if there is room: on whole GPUs, or as Ray does on the fullest that still fits."""
        share = min(1.0, wanted.num_gpus)
        places = [number for number, free in enumerate(self._gpus) if free + _ROUNDING >= share]
        places.sort(key=lambda number: self._gpus[number])
        num_gpus = math.ceil(wanted.num_gpus)
        if self._cpus + _ROUNDING < wanted.num_cpus or len(places) < num_gpus:
            return False
        self._cpus -= wanted.num_cpus
        for number in places[:num_gpus]:
            self._gpus[number] -= share
        return True


def check_room(*wanted: Wanted) -> None:
    """See that the machines can hold all these workers at the same time, so that nothing waits silently for resources
    that never come.

    A local Ray without room is a `UserError`; a cluster may still grow, so there it is a warning.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if _have_room([_Room(node) for node in nodes], wanted):
        return
    have = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    message = f"{', at the same time '.join(map(str, wanted))}, the machines have {have}"
    if not os.environ.get("RAY_ADDRESS"):
        raise UserError(message)
    log.warning("%s: waiting for the cluster to grow", message)


def _have_room(rooms: Sequence[_Room], wanted: Sequence[Wanted]) -> bool:
    """Those that need most first: the small ones fit beside them, but not they beside small ones."""
    largest_first = sorted(wanted, key=lambda each: (each.num_gpus, each.num_cpus), reverse=True)
    return all(any(room.take(each) for room in rooms) for each in largest_first for _ in range(each.num_workers))
