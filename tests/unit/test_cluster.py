"""The manifests in cluster/ are what KubeRay accepts, and name the image and the job that exist.

The CRDs of KubeRay are checked against when PRM_RAY_KUBERAY_CRDS names a folder with its `rayjobs.yaml`
(helm-chart/kuberay-operator/crds in KubeRay's repository); the short list of keys below is checked always.
"""

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from prm_ray.config import load_config

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "cluster").glob("*.yaml"))
CRDS = os.environ.get("PRM_RAY_KUBERAY_CRDS")

JOB_KEYS = {
    "entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished", "rayClusterSpec",
}  # fmt: skip
CLUSTER_KEYS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def ray_job() -> dict[str, Any]:
    (job,) = [item for item in documents(ROOT / "cluster/ray-job.yaml") if item["kind"] == "RayJob"]
    return job["spec"]


def groups() -> list[dict[str, Any]]:
    cluster = ray_job()["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers() -> list[dict[str, Any]]:
    return [container for group in groups() for container in group["template"]["spec"]["containers"]]


def closed(schema: Any) -> Any:
    """The CRD schema as the API server ought to read it: unknown keys are an error there, not dropped in silence."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def crd_schema() -> dict[str, Any]:
    crd = yaml.safe_load((Path(str(CRDS)) / "rayjobs.yaml").read_text(encoding="utf-8"))
    (version,) = [item for item in crd["spec"]["versions"] if item["name"] == "v1"]
    return closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_a_list_of_kubernetes_objects(path: Path):
    assert all({"apiVersion", "kind", "metadata"} <= item.keys() for item in documents(path))


def test_the_ray_job_uses_only_keys_that_kuberay_knows():
    assert ray_job().keys() <= JOB_KEYS
    assert ray_job()["rayClusterSpec"].keys() <= CLUSTER_KEYS
    for group in groups():
        assert group.keys() <= GROUP_KEYS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_operator_accepts_the_combination_of_job_settings():
    job = ray_job()
    assert job["shutdownAfterJobFinishes"] or "ttlSecondsAfterFinished" not in job
    assert not (job["shutdownAfterJobFinishes"] and "deletionStrategy" in job)


def test_every_mounted_volume_is_declared_in_its_pod():
    for group in groups():
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_every_node_runs_the_image_that_the_dockerfile_and_the_readme_build():
    (image,) = {container["image"] for container in containers()}
    for file in ("cluster/Dockerfile", "README.md"):
        assert f"docker build -f cluster/Dockerfile -t {image} ." in (ROOT / file).read_text(encoding="utf-8")


def test_the_cluster_the_image_and_the_package_name_one_ray_version():
    version = ray_job()["rayClusterSpec"]["rayVersion"]
    assert f"rayproject/ray:{version}-py311" in (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_entrypoint_is_a_job_with_a_valid_config_on_shared_storage():
    _, _, module, config_path, *overrides = ray_job()["entrypoint"].split()
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    config = load_config(ROOT / config_path, overrides)
    mounts = {mount["mountPath"] for container in containers() for mount in container["volumeMounts"]}
    assert str(config.run.dir).startswith("/shared/") and "/shared" in mounts


def test_there_are_gpus_for_every_worker_the_entrypoint_asks_for():
    _, _, _, config_path, *overrides = ray_job()["entrypoint"].split()
    config = load_config(ROOT / config_path, overrides)
    (workers,) = ray_job()["rayClusterSpec"]["workerGroupSpecs"]
    gpus = workers["replicas"] * int(
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert config.generate.num_engines * config.generate.gpus_per_engine <= gpus
    for section in (config.reference, config.train, config.score):
        assert section.num_workers * section.gpus_per_worker <= gpus


def test_the_image_does_not_run_as_root():
    users = re.findall(r"^USER (\S+)", (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    assert users and users[-1] not in ("root", "0")


@pytest.mark.skipif(not CRDS, reason="PRM_RAY_KUBERAY_CRDS names no folder with KubeRay's CRDs")
def test_the_ray_job_is_valid_under_kuberays_own_schema():
    jsonschema.Draft202012Validator(crd_schema()).validate(ray_job())


@pytest.mark.skipif(not CRDS, reason="PRM_RAY_KUBERAY_CRDS names no folder with KubeRay's CRDs")
def test_a_misspelt_key_is_noticed_under_kuberays_own_schema():
    job = ray_job()
    job["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft202012Validator(crd_schema()).validate(job)
