"""How many threads a worker that computes on CPUs has."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_OPENMP = "OMP_NUM_THREADS"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the process that a job begins with; in it is what the job was submitted with."""
_RAYLET = "RAY_RAYLET_PID"
"""Ray sets it for its workers."""

Node = Mapping[str, Any]
"""One of `ray.nodes()`."""


@dataclass(frozen=True)
class Threads:
    """Of each of `num_workers` workers; counted on the machine where one runs, which need not be the driver's.

    `number` is what the user has asked for; none = a share of the cores.
    """

    num_workers: int = 1
    number: int | None = None

    def count(self) -> int:
        return self.number or share_of_cores(self.num_workers)


def chosen_threads() -> int | None:
    """OMP_NUM_THREADS, where it is somebody's choice; none if it is not set.

    Where nobody sets it, what Ray starts has it from Ray: 1 for a job's own process, whatever the machine. So there
    the one that counts is in the runtime environment of the job or application.
    """
    given = _environment_given().get(_OPENMP, "")
    return max(1, int(given)) if given.isdigit() else None


def _environment_given() -> Mapping[str, str]:
    environment: Mapping[str, str] = os.environ
    if job := os.environ.get(_JOB):
        environment = json.loads(job).get("runtime_env", {}).get("env_vars", {})
    elif _RAYLET in os.environ:
        import ray

        environment = ray.get_runtime_context().runtime_env.get("env_vars", {})
    return environment


def set_threads(num_workers: int) -> None:
    """Give this worker its share of the cores, for what it computes next: Ray leaves an actor of one CPU one thread.

    Called for each shard: a cluster grows and shrinks, and with it the share.
    """
    import torch

    torch.set_num_threads(share_of_cores(num_workers))


def set_threads_beside(num_here: int, num_workers: int) -> None:
    """The same of one of `num_here` workers that are known to be on this node, of `num_workers` in all.

    Where several nodes are one machine, more of them may be beside it than its node knows of.
    """
    import torch

    nodes = _nodes()
    torch.set_num_threads(_share(max(num_here, _at_most_here(num_workers, nodes)), nodes))


def share_of_cores(num_workers: int) -> int:
    """This worker's share of its machine's cores, where `num_workers` are spread over all machines that have CPUs.

    Of workers that need GPUs it may be too much, where only some machines have them: there few threads are busy.
    """
    nodes = _nodes()
    return _share(_at_most_here(num_workers, nodes), nodes)


def _at_most_here(num_workers: int, nodes: Sequence[Node]) -> int:
    """Of workers that are spread evenly."""
    return math.ceil(num_workers / max(1, num_machines(nodes)))


def num_machines(nodes: Sequence[Node]) -> int:
    """Those that have CPUs for workers, as a cluster's head has not. Two nodes of one address are one machine."""
    return len({node["NodeManagerAddress"] for node in nodes if _cpus(node) >= 1})


def usable_cores(num_cores: int, nodes: Sequence[Node], node_id: str) -> int:
    """The machine's, or fewer where Ray counts fewer there: a container sees all cores of its host, and Ray those that
    are the container's."""
    (address,) = {node["NodeManagerAddress"] for node in nodes if node["NodeID"] == node_id} or {None}
    counted = sum(int(_cpus(node)) for node in nodes if node["NodeManagerAddress"] == address)
    return min(num_cores, counted) if counted else num_cores


def _share(num_here: int, nodes: Sequence[Node]) -> int:
    return max(1, usable_cores(len(os.sched_getaffinity(0)), nodes, _node_id()) // num_here)


def _cpus(node: Node) -> float:
    return float(node["Resources"].get("CPU", 0)) if node["Alive"] else 0.0


def _nodes() -> list[Node]:
    import ray

    return ray.nodes() if ray.is_initialized() else []


def _node_id() -> str:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
