"""Where the workers of a training on CPUs meet: at the addresses that Ray has for their machines, on one at loopback.

Left alone, gloo listens where the machine's own name leads. With `127.0.1.1 NAME` in /etc/hosts, as Debian and Ubuntu
write it, that is a place that no other machine reaches; without it, one that any other reaches.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Gloo's variable: the network interface to listen at."""


@dataclass
class GlooConfig(TorchConfig):
    """Torch's settings for Ray Train, of workers that compute on CPUs."""

    backend: str | None = "gloo"

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _GlooBackend


class _GlooBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        addresses = set(worker_group.execute(_own_address))
        worker_group.execute(_listen_on_loopback if len(addresses) == 1 else _listen_where_ray_does)
        super().on_start(worker_group, backend_config)


def _own_address() -> str:
    return ray.util.get_node_ip_address()


def _listen_where_ray_does() -> None:
    _listen_at(_own_address())


def _listen_on_loopback() -> None:
    _listen_at("127.0.0.1")


def _listen_at(address: str) -> None:
    """In a worker, unless the user has said where."""
    if INTERFACE not in os.environ and (name := interface_at(address)) is not None:
        os.environ[INTERFACE] = name


def interface_at(address: str) -> str | None:
    """The interface by which gloo listens at this address; none if no interface of this machine has it.

    Gloo takes an interface's first address. Where another one comes first it is as good, but for a loopback one: hosts
    that announce their own routes have their address behind that.
    """
    import psutil

    here: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        found = [each.address.partition("%")[0] for each in entries if each.family in (socket.AF_INET, socket.AF_INET6)]
        if address in found:
            here[name] = found
    exact = [name for name, found in here.items() if found[0] == address]
    near = [name for name, found in here.items() if not ip_address(found[0]).is_loopback]
    return next(iter(exact + near), None)
