"""Where the server listens: on the cluster's head, which need not be the machine of this process.

Serve's proxies are on the head, and for an address that every machine has, on those with replicas too.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

from prm_ray.errors import UserError
from prm_ray.settings import ServeSection
from prm_ray.stages.threads import Node


def proxy_location(host: str) -> str:
    """An address of one machine is the head's: the proxy of another one would try for ever to listen there."""
    return "EveryNode" if _is_wildcard(host) else "HeadOnly"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def head_elsewhere() -> str | None:
    """Address of the head's machine; none where this process is on it. Ray must have been started."""
    return address_elsewhere(ray.nodes(), ray.get_runtime_context().get_node_id())


def address_elsewhere(nodes: Sequence[Node], own_id: str) -> str | None:
    """`head_elsewhere` by `ray.nodes()` and this process' own node. Two nodes of one address are one machine."""
    head = next(node for node in nodes if node["Alive"] and HEAD_NODE_RESOURCE_NAME in node["Resources"])
    own = next(node for node in nodes if node["NodeID"] == own_id)
    address = head["NodeManagerAddress"]
    return None if own["NodeManagerAddress"] == address else address


def check_address(section: ServeSection, head: str | None) -> None:
    """Raises `UserError` for an address that cannot be used; `head` as `head_elsewhere` has it.

    Whether the head can listen at the port is seen from the head alone.
    """
    host, port = section.host, section.port
    if head is None:
        _check_can_listen(host, port)
    elif is_loopback(host):
        raise UserError(
            f"serve.host {host!r} is reached on the cluster's head ({head}) alone, where the server listens, and this "
            f"process is on another machine: it must be 0.0.0.0 or {head}, or the process must be on the head"
        )


def base_url(section: ServeSection, head: str | None) -> str:
    """Where this process reaches the server; `head` as `head_elsewhere` has it."""
    host = (head or "127.0.0.1") if _is_wildcard(section.host) else section.host
    return f"http://{host}:{section.port}"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _check_can_listen(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"serve.host {host!r} with serve.port {port} cannot be used: {error.strerror}") from None
