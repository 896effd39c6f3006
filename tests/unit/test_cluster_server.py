"""cluster/ray-service.yaml serves what `prm-ray serve` would, to those with a key, and can be watched and updated."""

import re
import shlex
from math import ceil
from typing import Any

import pytest
import yaml

from prm_ray.config import RunConfig, load_config, parse_config
from prm_ray.serve.manifest import manifest
from prm_ray.stages.cluster import PROXY_SETTING
from tests.manifests import CLUSTER, ROOT, cluster, documents, pods, the

SURGE = 0.5
"""`max_surge_percent` of the scorers' deployments: so many more replicas while they are replaced."""


def command() -> list[str]:
    """The words of the command that stands in the manifest as a comment."""
    text = (CLUSTER / "ray-service.yaml").read_text(encoding="utf-8")
    (found,) = re.findall(r"^ *#     (prm-ray serve .*?--yaml)$", text, flags=re.M | re.S)
    return shlex.split(re.sub(r"\\\n *#", " ", found))


def config() -> RunConfig:
    _, verb, path, *overrides, flag = command()
    assert (verb, flag) == ("serve", "--yaml")
    return load_config(ROOT / path, overrides)


def served() -> dict[str, Any]:
    return yaml.safe_load(the("ray-service.yaml", "RayService")["spec"]["serveConfigV2"])


def test_the_server_is_what_the_command_beside_it_prints():
    assert served() == yaml.safe_load(yaml.safe_dump(manifest(config())))


@pytest.mark.parametrize(("generator", "longest"), [(None, 120), ("vllm", 120 + 600)])
def test_serve_lets_a_request_take_as_long_as_generating_and_scoring_may(generator: str | None, longest: float):
    """Else it would end a chat before the candidates that came in time are chosen from."""
    from ray.serve.deployment import deployment_to_schema

    from prm_ray.serve.app import ingress_deployment

    serve = {"timeout_seconds": 120, "generator_timeout_seconds": 600, "generator": generator}
    config = parse_config({"serve": serve})
    waits = manifest(config)["http_options"]["request_timeout_s"]
    assert longest < waits <= longest + 30
    replaced = deployment_to_schema(ingress_deployment(config.serve))
    assert replaced.graceful_shutdown_timeout_s == waits, "Serve ends a replica that is replaced after 20 s by itself"


def test_the_server_reads_its_keys_from_a_secret_wherever_it_is_built_or_runs():
    path = config().serve.api_keys_file
    assert path is not None and path.name == "keys.txt"  # as the secret is made in docs/clusters.md
    for pod in pods("ray-service.yaml"):
        (volume,) = [
            each["name"] for each in pod["volumes"] if each.get("secret", {}).get("secretName") == "prm-ray-api-keys"
        ]
        mount = {"name": volume, "mountPath": str(path.parent), "readOnly": True}
        assert mount in pod["containers"][0]["volumeMounts"]
        assert "subPath" not in mount  # such a file would never change when the secret does


def test_the_server_is_of_the_run_that_the_job_makes():
    (run_dir,) = [word for word in the("ray-job.yaml", "RayJob")["spec"]["entrypoint"].split() if "run.dir=" in word]
    assert run_dir == f"run.dir={config().run.dir}"


def test_there_are_gpus_for_all_replicas_also_while_they_are_replaced():
    (workers,) = cluster("ray-service.yaml")["workerGroupSpecs"]
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    section = config().serve
    most = section.max_replicas or section.num_replicas
    assert workers["minReplicas"] * gpus >= section.num_replicas * section.gpus_per_replica
    assert workers["maxReplicas"] * gpus >= ceil(most * (1 + SURGE)) * section.gpus_per_replica


def test_the_surge_is_the_applications_own():
    from ray.serve.deployment import deployment_to_schema

    from prm_ray.serve.app import scorer_deployment

    deployment = scorer_deployment(config().serve, 0)
    assert deployment_to_schema(deployment).max_surge_percent == SURGE * 100


def test_every_pod_has_the_server_port():
    """KubeRay makes the service from a port called `serve` of the head."""
    for pod in pods("ray-service.yaml"):
        container = pod["containers"][0]
        assert {"containerPort": config().serve.port, "name": "serve"} in container["ports"]
        assert "readinessProbe" not in container  # KubeRay's own asks the proxy too; one written here would replace it


@pytest.mark.parametrize("name", ["ray-service.yaml", "ray-cluster.yaml"])
def test_every_pod_in_which_a_server_may_listen_has_the_proxys_answer_for_when_nobody_is_there(name: str):
    for pod in pods(name):
        assert dict(zip(("name", "value"), PROXY_SETTING, strict=True)) in pod["containers"][0]["env"]


def test_prometheus_asks_the_service_once_and_every_node():
    monitor, scrape = documents("monitoring.yaml")
    name, port = the("ray-service.yaml", "RayService")["metadata"]["name"], config().serve.port
    (targets,) = scrape["spec"]["staticConfigs"]
    assert targets["targets"] == [f"{name}-serve-svc.default:{port}"]
    asked = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    head, *workers = (pod["containers"][0]["ports"] for pod in pods("ray-service.yaml"))
    assert asked <= {port["name"] for port in head}
    assert all("metrics" in {port["name"] for port in ports} for ports in workers)


def test_prometheus_may_reach_what_it_asks():
    ports = {port["name"]: port["containerPort"] for port in pods("ray-service.yaml")[0]["containers"][0]["ports"]}
    allowed = set()
    for rule in (rule for policy in documents("network-policy.yaml") for rule in policy["spec"]["ingress"]):
        names = [each.get("namespaceSelector", {}).get("matchLabels", {}) for each in rule["from"]]
        if {"kubernetes.io/metadata.name": "monitoring"} in names:
            allowed |= {port["port"] for port in rule["ports"]}
    assert allowed == {ports[name] for name in ("metrics", "as-metrics", "dash-metrics", "serve")}
