"""The files of cluster/: read, and checked field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from lightkube.models.core_v1 import PersistentVolumeClaim
from lightkube.models.networking_v1 import NetworkPolicy
from lightkube.models.policy_v1 import PodDisruptionBudget
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from prm_ray.config import load_config, parse_config
from prm_ray.errors import UserError
from tests import kuberay
from tests.strict import faults

ROOT = Path(__file__).resolve().parents[1]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML was built with it."""
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted(path.name for path in CLUSTER.glob("*.yaml"))
RAY_OBJECTS = ["ray-cluster.yaml", "ray-job.yaml", "ray-service.yaml"]
RAY_UP = ["ray-up-aws.yaml", "ray-up-local.yaml"]

_KINDS = {
    "PersistentVolumeClaim": PersistentVolumeClaim,
    "NetworkPolicy": NetworkPolicy,
    "PodDisruptionBudget": PodDisruptionBudget,
    **{kind: getattr(kuberay, kind) for kind in ("RayCluster", "RayJob", "RayService", "PodMonitor", "ScrapeConfig")},
}
_FILES = {
    "ray-up-local.yaml": kuberay.RayUpLocal,
    "ray-up-aws.yaml": kuberay.RayUpAws,
    "prometheus.yaml": kuberay.Prometheus,
}
"""Files whose documents do not say what they are."""
_WORDS = {
    "accessModes": {"ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"},
    "effect": {"NoSchedule", "NoExecute", "PreferNoSchedule"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "operator": {"Exists", "Equal", "In", "NotIn", "DoesNotExist", "Gt", "Lt"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "whenUnsatisfiable": {"ScheduleAnyway", "DoNotSchedule"},
}
"""Field of Kubernetes -> the words that it takes; its models know only that they are texts."""
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTP]i?|Ki)?")
_RESOURCES = {"cpu", "memory", "storage", "ephemeral-storage", "nvidia.com/gpu"}
CLUSTER_OF = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Kind -> the field of its spec that holds the cluster."""


@cache
def documents(name: str) -> list[dict[str, Any]]:
    """Of one file of cluster/. Callers copy what they change."""
    return list(yaml.load_all((CLUSTER / name).read_text(encoding="utf-8"), LOADER))


def the(name: str, kind: str) -> dict[str, Any]:
    """The one document of that kind in a file."""
    (found,) = [item for item in documents(name) if item["kind"] == kind]
    return found


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    field = CLUSTER_OF[document["kind"]]
    return document["spec"][field] if field else document["spec"]


def cluster(name: str) -> dict[str, Any]:
    """The Ray cluster of a file."""
    (found,) = [item for item in documents(name) if item["kind"] in CLUSTER_OF]
    return cluster_of(found)


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Its head, then its groups of workers."""
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(name: str) -> list[dict[str, Any]]:
    """Specs of the pods of a file's cluster: the head's, then one a group of workers."""
    return [group["template"]["spec"] for group in groups(cluster(name))]


def wrong(name: str, document: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a document of that file; no line if nothing is."""
    kind = _FILES.get(name) or _KINDS.get(str(document.get("kind")))
    if kind is None:
        return [f"{name}: kind {document.get('kind')!r} is none that is known here"]
    found = faults(document, kind, name)
    if found:  # the rest reads what has to be there
        return found
    found += _wrong_words(document)
    if document.get("kind") in CLUSTER_OF:
        for group in groups(cluster_of(document)):
            flags = {flag.removeprefix("--") for flag in ray_start_flags()}
            found += [f"ray start has no --{key}" for key in group["rayStartParams"] if key not in flags]
    if document.get("kind") == "RayJob":
        found += wrong_entrypoint(document["spec"]["entrypoint"])
    if document.get("kind") == "RayService":
        found += wrong_serve_config(yaml.load(document["spec"]["serveConfigV2"], LOADER))
    return found


def wrong_entrypoint(entrypoint: str) -> list[str]:
    python, flag, module, config, *overrides = entrypoint.split()
    if (python, flag) != ("python", "-m") or not (ROOT / module.replace(".", "/")).with_suffix(".py").is_file():
        return [f"entrypoint: {python} {flag} {module} is no job"]
    try:
        load_config(ROOT / config, overrides)
    except UserError as error:
        return [f"entrypoint: {error}"]
    return []


def wrong_serve_config(value: Any) -> list[str]:
    """Serve reads past keys that it does not know; `args` are sections of a run, which are strict by themselves."""
    found = _unknown_keys(value, ServeDeploySchema, "serveConfigV2")
    if found:
        return found
    try:
        ServeDeploySchema.model_validate(value)
        for application in value["applications"]:
            parse_config(application["args"])
    except (ValidationError, UserError) as error:
        return [f"serveConfigV2: {error}"]
    return []


def _unknown_keys(value: Any, model: type[BaseModel], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: {value!r} must be a mapping"]
    found = [f"{where}: {key} is no field" for key in value if key not in model.model_fields]
    for key in value.keys() & model.model_fields.keys():
        for inner in _models_in(model.model_fields[key].annotation):
            items = value[key] if isinstance(value[key], list) else [value[key]]
            found += [line for item in items for line in _unknown_keys(item, inner, f"{where}.{key}")]
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _wrong_words(value: Any, key: str = "") -> list[str]:
    """Texts that Kubernetes' own models take and its API server does not."""
    if isinstance(value, list):
        return [line for item in value for line in _wrong_words(item, key)]
    if isinstance(value, dict):
        if key in ("limits", "requests"):
            return [f"{key}: {name}: {size}" for name, size in value.items() if not _is_amount(name, size)]
        return [line for name, item in value.items() for line in _wrong_words(item, name)]
    return [f"{key}: {value!r} must be one of {_WORDS[key]}"] if key in _WORDS and value not in _WORDS[key] else []


def _is_amount(name: str, size: str) -> bool:
    return name in _RESOURCES and _QUANTITY.fullmatch(size) is not None


@cache
def ray_start_flags() -> set[str]:
    from ray.scripts.scripts import start

    return {flag for parameter in start.params for flag in parameter.opts}
