"""Replicas that do not start at the first attempt."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import serve

from prm_ray.config import RunConfig
from prm_ray.serve.app import ingress_deployment, scorer_deployment
from prm_ray.serve.generatordeployment import generator_deployment


def deployment_of(part: str, replica: type) -> Any:
    """As the application has it, with another class inside."""
    config = RunConfig()
    made: Any = {
        "scorer": lambda: scorer_deployment(config.serve, 0),
        "generator": lambda: generator_deployment(config, cast(Any, SimpleNamespace(model="m")))._bound_deployment,
        "ingress": lambda: ingress_deployment(config.serve),
    }[part]()
    return made.options(func_or_class=replica)


@pytest.mark.parametrize("part", ["scorer", "generator", "ingress"])
def test_one_failure_while_it_starts_does_not_end_a_deployment(part: str, tmp_path: Path, ray_local: None) -> None:
    """Serve would not try again before somebody deploys again."""

    class FailsOnce:
        def __init__(self, failed: Path):
            if not failed.exists():
                failed.touch()
                raise RuntimeError("the hub is busy")

    serve.start(proxy_location="Disabled")
    try:
        serve.run(deployment_of(part, FailsOnce).bind(tmp_path / "failed"), name="another", route_prefix=None)
        assert (tmp_path / "failed").exists()
    finally:
        serve.shutdown()
