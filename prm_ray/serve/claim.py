"""One server a cluster: Serve has one address for all its applications, and stopping it stops it for all.

Who serves holds a named actor, which ends with the process that made it, so a server that was killed is no hindrance.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prm_ray.config import RunConfig
from prm_ray.errors import UserError

_NAME = "prm_ray_server"
_ANSWERS_WITHIN_SECONDS = 30
_claims: list[Any] = []
"""This process' own: the actor lives as long as somebody holds it."""


class _Claim:
    def __init__(self, what: str):
        self._what = what

    def what(self) -> str:
        return self._what


def claim_cluster(config: RunConfig) -> None:
    """Raises `UserError` if another process serves on this cluster; a local Ray is this process' own."""
    if _claims or not os.environ.get("RAY_ADDRESS"):
        return
    what = f"{config.run.dir} at {config.serve.host}:{config.serve.port}"
    # Ray would put it on any machine, with whose loss the claim would end and the server go on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(_Claim).options(name=_NAME, namespace=_NAME, num_cpus=0, scheduling_strategy=here)
    try:
        _claims.append(actor.remote(what))
    except ValueError:  # the name is taken
        raise UserError(
            f"this cluster serves {_others()} already: stop that first (prm-ray stop JOB, or Ctrl-C where it runs), "
            "name this run in its serve.models, or use another cluster"
        ) from None


def give_up_claim() -> None:
    while _claims:
        ray.kill(_claims.pop())


def _others() -> str:
    try:
        holder = ray.get_actor(_NAME, namespace=_NAME)
        return ray.get(holder.what.remote(), timeout=_ANSWERS_WITHIN_SECONDS)
    except (ValueError, RayError):
        return "something"
