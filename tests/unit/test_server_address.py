"""Where a server listens and is asked, on clusters whose head is another machine than the driver's."""

import socket
from typing import Any

import pytest

from prm_ray.config import RunConfig, parse_config
from prm_ray.errors import UserError
from prm_ray.serve import server
from prm_ray.serve.address import address_elsewhere, base_url, check_address, proxy_location
from prm_ray.serve.manifest import manifest
from prm_ray.settings import ServeSection

HEAD = "10.0.0.1"


def node(name: str, address: str, is_head: bool = False, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": 4.0} | ({"node:__internal_head__": 1.0} if is_head else {})
    return {"NodeID": name, "NodeManagerAddress": address, "Alive": alive, "Resources": resources if alive else {}}


NODES = [
    node("lost", "10.0.0.9", alive=False),
    node("worker", "10.0.0.2"),
    node("beside", HEAD),
    node("head", HEAD, is_head=True),
]


@pytest.mark.parametrize(("own", "elsewhere"), [("head", None), ("beside", None), ("worker", HEAD)])
def test_the_head_is_elsewhere_for_a_process_on_another_machine(own: str, elsewhere: str | None) -> None:
    assert address_elsewhere(NODES, own) == elsewhere


@pytest.mark.parametrize(
    ("host", "location"),
    [("0.0.0.0", "EveryNode"), ("::", "EveryNode"), ("127.0.0.1", "HeadOnly"), (HEAD, "HeadOnly"), ("me", "HeadOnly")],
)
def test_other_machines_listen_only_at_an_address_that_they_have_too(host: str, location: str) -> None:
    assert proxy_location(host) == location
    assert manifest(parse_config({"serve": {"host": host}}))["proxy_location"] == location


@pytest.mark.parametrize(
    ("host", "head", "asked"),
    [("0.0.0.0", None, "127.0.0.1"), ("0.0.0.0", HEAD, HEAD), ("127.0.0.1", None, "127.0.0.1"), (HEAD, HEAD, HEAD)],
)
def test_the_server_is_asked_on_the_head(host: str, head: str | None, asked: str) -> None:
    assert base_url(ServeSection(host=host, port=8123), head) == f"http://{asked}:8123"


def test_a_port_in_use_matters_on_the_heads_machine_alone() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        section = ServeSection(host="0.0.0.0", port=taken.getsockname()[1])
        check_address(section, HEAD)
        with pytest.raises(UserError, match="cannot be used: Address already in use"):
            check_address(section, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_from_another_machine_than_the_head_a_loopback_address_is_refused_before_anything_loads(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"{HEAD}:6379")
    monkeypatch.setattr(server, "served_models", lambda config: [])
    monkeypatch.setattr(server, "start_ray", lambda config: None)
    monkeypatch.setattr(server, "head_elsewhere", lambda: HEAD)
    with pytest.raises(UserError, match=rf"^serve\.host '{host}' is .*\({HEAD}\).* it must be 0\.0\.0\.0 or {HEAD}"):
        server.start(parse_config({"serve": {"host": host}}))


def test_a_ray_of_ones_own_need_not_start_for_a_port_in_use_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def starts(config: RunConfig) -> None:
        raise AssertionError("Ray starts")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(server, "served_models", lambda config: [])
    monkeypatch.setattr(server, "start_ray", starts)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="Address already in use"):
        server.start(parse_config({"serve": {"port": taken.getsockname()[1]}}))
