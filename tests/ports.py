"""Ports of this machine that a test may give to what it starts, and where workers listen."""

import os
import socket
from pathlib import Path
from typing import Any

import psutil

_GIVEN: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports from 20000 to 29999 that nobody listens on: below are Ray's own, above those of outgoing connections.

    A port is listened on only seconds after it was given. So the processes of one `pytest -n 2` have ranges of their
    own, those of more begin far apart, and none is one that the system gives to whoever asks for any.
    """
    found: list[int] = []
    side = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    first = 20000 + 1000 * (2 * (os.getppid() % 5) + side)
    port = first + os.getpid() * 97 % 1000
    while len(found) < count:
        port = port + 1 if port < first + 999 else first
        with socket.socket() as probe:
            if port not in _GIVEN and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
                _GIVEN.add(port)
    return found


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def load_and_note_addresses(place: Path, *args: Any, **settings: Any) -> Any:
    """`models.load_model` in a worker, which leaves in a file at what addresses it listens: a line each."""
    from prm_ray.models import load_model

    listening = [each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"]
    (place / str(os.getpid())).write_text("\n".join(listening))
    return load_model(*args, **settings)
