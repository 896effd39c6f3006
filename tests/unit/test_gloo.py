"""Which network interface workers that compute on CPUs meet at, and which backend a training has."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray.util
from ray.train.torch.config import _TorchBackend

from prm_ray.stages import fit
from prm_ray.stages.gloo import INTERFACE, GlooConfig, _listen_where_ray_does, interface_at
from tests.tables_by_hand import tiny_config
from tests.unit.test_attempts import attempt_at

LOOPBACK, OWN, OTHER = "127.0.0.1", "10.1.2.3", "10.9.9.9"


def machine(monkeypatch: pytest.MonkeyPatch, **interfaces: list[str]) -> None:
    """One with these interfaces and their addresses, behind which psutil has those of the hardware."""

    def entry(address: str) -> SimpleNamespace:
        return SimpleNamespace(family=socket.AF_INET6 if ":" in address else socket.AF_INET, address=address)

    hardware = SimpleNamespace(family=socket.AF_PACKET, address=OWN)
    found = {name: [*map(entry, addresses), hardware] for name, addresses in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


@pytest.mark.parametrize(
    ("interfaces", "address", "name"),
    [
        ({"lo": [LOOPBACK], "docker0": ["172.17.0.1"], "eth0": [OWN]}, OWN, "eth0"),
        ({"lo": [LOOPBACK], "eth0": [OWN]}, LOOPBACK, "lo"),
        ({"eth0": [OTHER, OWN], "eth1": [OWN]}, OWN, "eth1"),
        ({"lo": [LOOPBACK, OWN], "bond0": [OTHER, OWN]}, OWN, "bond0"),
        ({"lo": [LOOPBACK, OWN], "eth0": ["fe80::1%eth0"]}, OWN, None),
        ({"lo": [LOOPBACK, "::1"], "eth0": ["fd00::2", "fe80::1%eth0"]}, "fd00::2", "eth0"),
        ({"lo": [LOOPBACK], "eth0": [OTHER]}, OWN, None),
    ],
)
def test_workers_listen_where_gloo_takes_the_address_that_ray_has(
    interfaces: dict[str, list[str]], address: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None = where gloo itself would: behind a translated address, or where an own one lies behind loopback's."""
    machine(monkeypatch, **interfaces)
    assert interface_at(address) == name


@pytest.mark.parametrize(("chosen", "expected"), [(None, "eth0"), ("ib0", "ib0"), ("", "")])
def test_the_interface_that_a_user_names_is_left_alone(
    chosen: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, lo=[LOOPBACK], eth0=[OWN], ib0=[OTHER])
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: OWN)
    monkeypatch.setattr(os, "environ", {} if chosen is None else {INTERFACE: chosen})
    _listen_where_ray_does()
    assert os.environ[INTERFACE] == expected


@pytest.mark.parametrize(
    ("addresses", "expected"), [([OWN, OTHER], ["eth0", "eth0"]), ([OWN, OWN], ["lo", "lo"]), ([OWN], ["lo"])]
)
def test_workers_of_several_machines_meet_at_their_addresses_and_of_one_on_loopback(
    addresses: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`addresses` are those of the workers' machines; what each listens at when the others are started."""
    listening: list[str] = []

    def execute(work: Callable[[], Any]) -> list[Any]:
        return [on_machine(address, work) for address in addresses]

    def on_machine(address: str, work: Callable[[], Any]) -> Any:
        machine(monkeypatch, lo=[LOOPBACK], eth0=[address])
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
        monkeypatch.setattr(os, "environ", {})
        found = work()
        listening.extend(os.environ.values())
        return found

    monkeypatch.setattr(_TorchBackend, "on_start", lambda *_: None)
    config = GlooConfig()
    config.backend_cls().on_start(SimpleNamespace(execute=execute), config)
    assert listening == expected


class Asked(Exception):
    """With the settings that Ray Train would have got."""


@pytest.mark.parametrize(("num_gpus", "backend"), [(0, "gloo"), (1, "nccl")])
def test_only_workers_without_gpus_meet_by_gloo(
    num_gpus: int, backend: str, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer(*args: Any, torch_config: Any, **settings: Any) -> None:
        raise Asked(torch_config)

    monkeypatch.setattr(fit, "TorchTrainer", trainer)
    monkeypatch.setattr(fit, "check_room", lambda *_: None)
    config = tiny_config(tmp_path, tiny_model, train={"gpus_per_worker": num_gpus})
    folder = attempt_at(tmp_path, "train")
    plan = fit.FitPlan("train", folder, tiny_model, config, config.train, 0, lambda: None)
    with pytest.raises(Asked) as asked:
        fit.fit(plan, 1)
    (settings,) = asked.value.args
    assert settings.backend == backend and isinstance(settings, GlooConfig) == (backend == "gloo")
