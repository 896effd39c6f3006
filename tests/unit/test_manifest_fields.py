"""Every field of every manifest in cluster/ is one that its reader knows; a wrong one, planted anywhere, is noticed.

KubeRay's own CRDs are checked against too when PRM_RAY_KUBERAY_CRDS names a folder with `rayclusters.yaml`,
`rayjobs.yaml` and `rayservices.yaml` (helm-chart/kuberay-operator/crds in KubeRay's repository).
"""

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import jsonschema
import msgspec
import pytest
import yaml
from lightkube.models.core_v1 import PodTemplateSpec, ResourceRequirements, SecurityContext

from tests import kuberay
from tests.manifests import LOADER, MANIFESTS, RAY_OBJECTS, documents, wrong

CRDS = os.environ.get("PRM_RAY_KUBERAY_CRDS")
needs_crds = pytest.mark.skipif(not CRDS, reason="PRM_RAY_KUBERAY_CRDS names no folder with KubeRay's CRDs")

FREE = {"labels", "annotations", "matchLabels", "nodeSelector", "file_mounts"}
"""Mappings whose keys are the user's own."""
OPEN_TO_KUBERAY = {"limits", "requests", "rayStartParams"}
"""Mappings whose keys its schema does not know, and we do."""
OF_KUBERNETES = (PodTemplateSpec, ResourceRequirements, SecurityContext)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a document, the document itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def mappings(document: Any) -> list[tuple[Any, ...]]:
    """Paths to those whose keys mean something to who reads the document."""
    found = [path for path in places(document) if isinstance(at(document, path), dict)]
    return [path for path in found if not (path and path[-1] in FREE)]


def opened(document: dict[str, Any]) -> dict[str, Any]:
    """A copy whose text of Serve's settings is a mapping, so that faults can be planted inside."""
    document = deepcopy(document)
    if document.get("kind") == "RayService":
        document["spec"]["serveConfigV2"] = yaml.load(document["spec"]["serveConfigV2"], LOADER)
    return document


def closed(document: dict[str, Any]) -> dict[str, Any]:
    if document.get("kind") == "RayService":
        document["spec"]["serveConfigV2"] = json.dumps(document["spec"]["serveConfigV2"])  # which is YAML too
    return document


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_field_of_a_manifest_is_known_and_of_its_type(name: str):
    assert [line for document in documents(name) for line in wrong(name, document)] == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_unknown_field_is_noticed_wherever_it_stands(name: str):
    missed = []
    for document in map(opened, documents(name)):
        for path in mappings(document):
            spoilt = deepcopy(document)
            at(spoilt, path)["wrongField"] = "1"
            missed += [] if wrong(name, closed(spoilt)) else [path]
    assert missed == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_value_of_another_type_is_noticed_wherever_it_stands(name: str):
    missed = []
    for document in map(opened, documents(name)):
        for path in (path for path in places(document) if not isinstance(at(document, path), (dict, list))):
            spoilt = deepcopy(document)
            at(spoilt, path[:-1])[path[-1]] = {"wrong": ["type"]}
            missed += [] if wrong(name, closed(spoilt)) else [path]
    assert missed == []


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("ray-job.yaml", ("spec", "entrypoint"), "python -m jobs.run configs/gsm8k.toml train.betta=1"),
        ("ray-job.yaml", ("spec", "entrypoint"), "python -m jobs.rum configs/gsm8k.toml"),
        ("ray-job.yaml", ("spec", "entrypoint"), "python -m jobs.run configs/gsm9k.toml"),
        ("ray-job.yaml", ("spec", "submissionMode"), "SideCarMode"),
        ("ray-job.yaml", ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpu"), "0"),
        ("ray-job.yaml", ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("ray-job.yaml", ("spec", "rayClusterSpec", "autoscalerOptions", "resources", "limits", "memory"), "1Gib"),
        ("storage.yaml", ("spec", "accessModes"), ["ReadWriteAll"]),
        ("network-policy.yaml", ("spec", "policyTypes"), ["ingress"]),
        ("ray-up-aws.yaml", ("available_node_types", "gpu_spot", "node_config", "InstanceMarketOptions"), {}),
    ],
)
def test_a_wrong_word_is_noticed(name: str, path: tuple[str, ...], value: Any):
    document = deepcopy(documents(name)[0])
    at(document, path[:-1])[path[-1]] = value
    assert wrong(name, document)


@cache
def crd(kind: str) -> dict[str, Any]:
    """The schema of a kind's spec, of KubeRay's version v1."""
    text = (Path(str(CRDS)) / f"{kind.lower()}s.yaml").read_text(encoding="utf-8")
    (version,) = [item for item in yaml.load(text, LOADER)["spec"]["versions"] if item["name"] == "v1"]
    return strictly(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def strictly(schema: Any) -> Any:
    """As the API server ought to read it: unknown keys are an error there, not dropped in silence."""
    if isinstance(schema, list):
        return [strictly(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strictly(value) for key, value in schema.items() if key != "description"}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@needs_crds
@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_a_manifest_is_valid_under_kuberays_own_schema(name: str):
    document = documents(name)[0]
    jsonschema.Draft202012Validator(crd(document["kind"])).validate(document["spec"])


@needs_crds
@pytest.mark.parametrize("name", RAY_OBJECTS)
def test_kuberays_own_schema_too_notices_an_unknown_field_wherever_it_stands(name: str):
    document = documents(name)[0]
    schema, spec = crd(document["kind"]), document["spec"]
    closed_ones = [path for path in mappings(spec) if not (path and path[-1] in OPEN_TO_KUBERAY)]
    missed = [path for path in closed_ones if schema_at(schema, path).get("additionalProperties") is not False]
    assert missed == []


def schema_at(schema: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    for key in path:
        schema = schema["items"] if isinstance(key, int) else schema["properties"][key]
    return schema


@needs_crds
@pytest.mark.parametrize("kind", [kuberay.RayCluster, kuberay.RayJob, kuberay.RayService])
def test_what_is_written_down_here_about_kuberay_is_so(kind: type[msgspec.Struct]):
    (spec,) = [field.type for field in msgspec.structs.fields(kind) if field.name == "spec"]
    assert disagreements(spec, crd(kind.__name__), kind.__name__) == []


def disagreements(kind: Any, schema: dict[str, Any], where: str) -> list[str]:
    """Between a type of tests/kuberay.py and the CRD: fields, their types and their words, and which must be there."""
    if get_origin(kind) is UnionType:
        kind = get_args(kind)[0]
    if kind in OF_KUBERNETES:
        return []
    if get_origin(kind) is list:
        return disagreements(get_args(kind)[0], schema["items"], f"{where}[]")
    if get_origin(kind) is Literal:
        unknown = [word for word in get_args(kind) if word not in schema.get("enum", get_args(kind))]
        return [f"{where}: {word}" for word in unknown]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        missing = [f"{where}: {name} has to be there" for name in schema.get("required", []) if name not in fields]
        unknown = [f"{where}: {name} is no field" for name in fields if name not in schema["properties"]]
        known = [name for name in fields if name in schema["properties"]]
        inner = [disagreements(fields[name], schema["properties"][name], f"{where}.{name}") for name in known]
        return [*missing, *unknown, *(line for lines in inner for line in lines)]
    name = {str: "string", int: "integer", bool: "boolean"}.get(kind, "object")
    return [] if schema["type"] == name else [f"{where}: {schema['type']}, not {name}"]
