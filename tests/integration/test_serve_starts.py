"""Replicas that do not start at the first attempt."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import serve

from prm_ray.config import RunConfig
from prm_ray.serve.app import ingress_deployment, scorer_deployment
from prm_ray.serve.generatordeployment import generator_deployment


def deployment_of(part: str, num_replicas: int, replica: type) -> Any:
    """As the application has it, with another class inside."""
    config = RunConfig.model_validate({"serve": {"num_replicas": num_replicas, "generator_replicas": num_replicas}})
    made: Any = {
        "scorer": lambda: scorer_deployment(config.serve, 0),
        "generator": lambda: generator_deployment(config, cast(Any, SimpleNamespace(model="m")))._bound_deployment,
        "ingress": lambda: ingress_deployment(config.serve),
    }[part]()
    return made.options(func_or_class=replica)


@pytest.mark.parametrize(("part", "num_replicas"), [("scorer", 3), ("generator", 3), ("ingress", 1)])
def test_one_failure_of_each_while_they_start_does_not_end_a_deployment(
    part: str, num_replicas: int, tmp_path: Path, ray_local: None
) -> None:
    """Serve would not try again before somebody deploys again."""

    class FailsAtFirst:
        def __init__(self, failures: Path):
            for number in range(num_replicas):
                with contextlib.suppress(FileExistsError), (failures / str(number)).open("x"):
                    raise RuntimeError("the hub is busy")

    serve.start(proxy_location="Disabled")
    try:
        deployment = deployment_of(part, num_replicas, FailsAtFirst)
        serve.run(deployment.bind(tmp_path), name="another", route_prefix=None)
        assert len(list(tmp_path.iterdir())) == num_replicas
    finally:
        serve.shutdown()
