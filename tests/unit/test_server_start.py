"""A server that does not come up leaves the cluster as it was, over a stand-in for Ray Serve."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException

from prm_ray.config import parse_config
from prm_ray.errors import StorageError, UserError
from prm_ray.serve import app, server
from prm_ray.serve.manifest import APP_NAME


class Serve:
    """What of Serve runs on a cluster; None = nothing."""

    def __init__(self, applications: set[str] | None):
        self.applications = applications
        self.error: BaseException | None = None
        self.options: dict[str, Any] = {}

    def status(self) -> Any:
        none: dict[str, Any] = {}
        return SimpleNamespace(proxies={} if self.applications is None else {"node": "HEALTHY"}, applications=none)

    def start(self, **options: Any) -> None:
        self.applications, self.options = self.applications or set(), options

    def run(self, target: Any, name: str, **options: Any) -> None:
        assert self.applications is not None
        self.applications.add(name)
        if self.error is not None:
            raise self.error

    def delete(self, name: str) -> None:
        assert self.applications is not None
        self.applications.remove(name)

    def shutdown(self) -> None:
        self.applications = None


def interrupted(base_url: str) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Serve], None]:
    """Starts a server that never answers, for nobody listens at its port."""
    monkeypatch.setattr(server, "_ANSWERS_WITHIN_SECONDS", 0)
    monkeypatch.setattr(app, "build", lambda config: None)
    monkeypatch.setattr(server, "head_elsewhere", lambda: None)
    config = parse_config({"serve": {"port": server.free_port()}})

    def start(serve: Serve) -> None:
        monkeypatch.setattr(server, "serve", serve)
        server._deploy(config, [])

    return start


@pytest.mark.parametrize("before", [None, {"another"}])
def test_where_it_does_not_answer_the_cluster_is_as_it_was(
    start: Callable[[Serve], None], before: set[str] | None
) -> None:
    serve = Serve(before and set(before))
    with pytest.raises(UserError, match=r"does not answer .* does another Serve run on this cluster"):
        start(serve)
    assert serve.applications == before


@pytest.mark.parametrize("before", [None, {"another"}])
def test_interrupted_while_it_is_waited_for_the_cluster_is_as_it_was(
    start: Callable[[Serve], None], before: set[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_wait_until_it_answers", interrupted)
    serve = Serve(before and set(before))
    with pytest.raises(KeyboardInterrupt):
        start(serve)
    assert serve.applications == before


@pytest.mark.parametrize("before", [None, {"another"}])
def test_where_a_model_does_not_load_the_cluster_is_as_it_was(
    start: Callable[[Serve], None], before: set[str] | None
) -> None:
    serve = Serve(before and set(before))
    serve.error = RayServeException("ValueError: no such layer")
    with pytest.raises(UserError, match=r"a model did not load \(\): ValueError: no such layer"):
        start(serve)
    assert serve.applications == before


def test_a_store_that_goes_away_meanwhile_is_no_bad_input(
    start: Callable[[Serve], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(config: object) -> None:
        raise StorageError("'s3://b/m' cannot be read: no such host")

    monkeypatch.setattr(app, "build", away)
    serve = Serve(None)
    with pytest.raises(StorageError, match="no such host"):
        start(serve)
    assert serve.applications is None


def test_one_that_answers_goes_on(start: Callable[[Serve], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_wait_until_it_answers", lambda base_url: None)
    serve = Serve(None)
    start(serve)
    assert serve.applications == {APP_NAME}


def test_from_another_machine_it_is_asked_on_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    serve = Serve(None)
    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(app, "build", lambda config: None)
    monkeypatch.setattr(server, "head_elsewhere", lambda: "10.0.0.1")
    monkeypatch.setattr(server, "_wait_until_it_answers", asked.append)
    for host in ("0.0.0.0", "10.0.0.1"):
        assert server._deploy(parse_config({"serve": {"host": host}}), []) == asked[-1] == "http://10.0.0.1:8000"
        assert serve.options["proxy_location"] == ("EveryNode" if host == "0.0.0.0" else "HeadOnly")
