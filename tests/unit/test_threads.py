"""Threads of workers on CPUs: a share of what their own machine has, or what the user said, never what Ray set."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prm_ray.stages.threads import (
    Threads,
    chosen_threads,
    num_machines,
    set_threads_beside,
    share_of_cores,
    usable_cores,
)

HEAD = {"NodeID": "head", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {}}


def node(name: str, address: str, cpus: float, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": address, "Alive": alive, "Resources": {"CPU": cpus}}


NODES = [HEAD, node("a", "10.0.0.2", 16), node("b", "10.0.0.3", 16), node("gone", "10.0.0.4", 16, alive=False)]


@pytest.fixture(autouse=True)
def outside_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RAYLET_PID"):
        monkeypatch.delenv(name, raising=False)


def cluster(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], here: str, num_cores: int) -> None:
    monkeypatch.setattr("prm_ray.stages.threads._nodes", lambda: nodes)
    monkeypatch.setattr("prm_ray.stages.threads._node_id", lambda: here)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(num_cores)))


def test_machines_that_compute_count_once_each():
    assert num_machines(NODES) == 2
    assert num_machines([node("a", "10.0.0.2", 4), node("b", "10.0.0.2", 4)]) == 1
    assert num_machines([]) == 0


def test_a_container_has_the_cores_that_ray_counts_and_a_machine_no_more_than_it_has():
    assert usable_cores(64, NODES, "a") == 16
    assert usable_cores(2, NODES, "a") == 2
    assert usable_cores(64, NODES, "head") == 64
    assert usable_cores(64, [*NODES, node("second", "10.0.0.2", 8)], "a") == 24, "two nodes of one machine"


@pytest.mark.parametrize(("num_workers", "share"), [(1, 16), (2, 16), (4, 8), (5, 5), (64, 1)])
def test_workers_share_only_with_those_on_their_machine(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, share: int
) -> None:
    cluster(monkeypatch, NODES, "b", num_cores=32)
    assert Threads(num_workers).count() == share


ONE_MACHINE = [node("a", "10.0.0.3", 8), node("b", "10.0.0.3", 8)]


@pytest.mark.parametrize(
    ("nodes", "num_here", "num_workers", "number"),
    [(NODES, 1, 2, 16), (NODES, 4, 4, 4), (NODES, 20, 20, 1), (ONE_MACHINE, 1, 2, 8), (ONE_MACHINE, 2, 4, 4)],
)
def test_workers_known_to_be_here_share_the_machine(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], num_here: int, num_workers: int, number: int
) -> None:
    cluster(monkeypatch, nodes, "b", num_cores=32)
    set_threads_beside(num_here, num_workers)
    assert torch.get_num_threads() == number


def test_without_ray_all_workers_are_here(monkeypatch: pytest.MonkeyPatch):
    cluster(monkeypatch, [], "", num_cores=12)
    assert share_of_cores(4) == 3


def test_the_number_that_was_asked_for_is_taken_on_every_machine():
    assert Threads(4, number=7).count() == 7


@pytest.mark.parametrize(("value", "number"), [("6", 6), ("0", 1), ("", None), ("4,2", None)])
def test_the_users_own_variable_counts(monkeypatch: pytest.MonkeyPatch, value: str, number: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert chosen_threads() == number


@pytest.mark.parametrize(("submitted_with", "number"), [({}, None), ({"OMP_NUM_THREADS": "3"}, 3)])
def test_in_a_job_only_what_it_was_submitted_with_counts(
    monkeypatch: pytest.MonkeyPatch, submitted_with: dict[str, str], number: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it, whatever the machine
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": submitted_with}}))
    assert chosen_threads() == number


@pytest.mark.parametrize(("runtime_env", "number"), [({}, None), ({"env_vars": {"OMP_NUM_THREADS": "3"}}, 3)])
def test_in_a_worker_only_the_runtime_environment_counts(
    monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, Any], number: int | None
) -> None:
    """A RayService builds its application in a task."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_RAYLET_PID", "123")
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(runtime_env=runtime_env))
    assert chosen_threads() == number
