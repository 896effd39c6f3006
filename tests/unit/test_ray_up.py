"""The files for `ray up` are what Ray itself accepts, and their commands name options that exist."""

import re
from copy import deepcopy
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from prm_ray.stages.cluster import PROXY_SETTING
from tests.manifests import RAY_UP, documents, ray_start_flags


def settings(name: str) -> dict[str, Any]:
    return deepcopy(documents(name)[0])


def prepared(name: str) -> dict[str, Any]:
    config = prepare_config(settings(name))
    validate_config(config)
    return config


def commands(config: dict[str, Any]) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_the_file(name: str):
    assert prepared(name)["cluster_name"] == "prm-ray"


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_installs_no_other_version_of_itself(name: str):
    """What it does by default in a cloud."""
    assert not [
        command for command in commands(prepared(name)) if re.search(r"ray\[|ray-wheels|pip install.* ray", command)
    ]


@pytest.mark.parametrize("name", RAY_UP)
def test_the_commands_name_options_of_ray_start_that_exist(name: str):
    starts = [command for command in commands(settings(name)) if command.startswith("ray start")]
    assert len(starts) == 2
    flags = {flag for command in starts for flag in re.findall(r"--[a-z-]+", command)}
    assert flags and flags <= ray_start_flags()


@pytest.mark.parametrize("name", RAY_UP)
def test_the_dashboard_listens_on_the_head_alone_and_asks_for_the_token(name: str):
    config = settings(name)
    (head,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", RAY_UP)
def test_every_container_has_the_shared_folder_and_the_proxys_answer_for_when_nobody_is_there(name: str):
    options = settings(name)["docker"]["run_options"]
    assert "--volume /shared:/shared" in options and f"--env {'='.join(PROXY_SETTING)}" in options


def test_machines_that_are_there_are_all_used():
    config = prepared("ray-up-local.yaml")
    assert config["max_workers"] == len(config["provider"]["worker_ips"]) == 2


def test_in_a_cloud_workers_are_spot_machines_that_go_when_idle_and_the_head_is_none():
    config = prepared("ray-up-aws.yaml")
    types = config["available_node_types"]
    head, worker = types[config["head_node_type"]], types["gpu_spot"]
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and worker["resources"]["GPU"] == 1
    assert worker["min_workers"] == 0 and worker["max_workers"] == config["max_workers"]
    assert config["idle_timeout_minutes"] > 0 and config["provider"]["cache_stopped_nodes"] is False


def test_prometheus_asks_the_machines_of_the_local_file_where_their_metrics_are():
    jobs = {job["job_name"]: job["static_configs"] for job in documents("prometheus.yaml")[0]["scrape_configs"]}
    provider = settings("ray-up-local.yaml")["provider"]
    nodes, head = (each["targets"] for each in jobs["ray"])
    assert nodes == [f"{ip}:8080" for ip in [provider["head_ip"], *provider["worker_ips"]]]
    assert all(target.startswith(f"{provider['head_ip']}:") for target in [*head, *jobs["prm_ray"][0]["targets"]])
    starts = [command for command in commands(settings("ray-up-local.yaml")) if command.startswith("ray start")]
    assert all("--metrics-export-port=8080" in command for command in starts)
