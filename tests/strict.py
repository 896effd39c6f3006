"""Says what is wrong with a value that ought to be of some type, unknown keys included.

The API server of Kubernetes drops a key that it does not know without a word, and Serve reads past it; a misspelt
setting is then simply not in force. Types are `msgspec` structs, which lightkube's models of Kubernetes are.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec


def faults(value: Any, kind: Any, where: str) -> list[str]:
    """A line for each thing that is wrong, with its place; none if the value is of that type, all the way down."""
    origin = get_origin(kind)
    if kind is Any:
        return []
    if origin in (Union, UnionType):  # null is no value to write down, so None is left out
        found = [faults(value, option, where) for option in get_args(kind) if option is not NoneType]
        return min(found, key=len)
    if origin is Literal:
        return [] if value in get_args(kind) else [f"{where}: {value!r} must be one of {get_args(kind)}"]
    if origin is list and isinstance(value, list):
        (of,) = get_args(kind)
        return [fault for i, item in enumerate(value) for fault in faults(item, of, f"{where}[{i}]")]
    if (kind is dict or origin is dict) and isinstance(value, dict):
        of = (get_args(kind) or (str, str))[1]  # a dict that says no more is one of strings, in Kubernetes
        return [fault for key, item in value.items() for fault in faults(item, of, f"{where}.{key}")]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return _faults_of_object(value, kind, where)
    plain = int if kind is float and type(value) is int else kind
    return [] if type(value) is plain else [f"{where}: {value!r} must be {getattr(kind, '__name__', kind)}"]


def _faults_of_object(value: dict[str, Any], kind: type[msgspec.Struct], where: str) -> list[str]:
    fields = _fields(kind)
    missing = [name for name, field in fields.items() if field.required and name not in value]
    found = [f"{where}: {name} is missing" for name in missing]
    for key, item in value.items():
        known = key in fields
        found += faults(item, fields[key].type, f"{where}.{key}") if known else [f"{where}: {key} is no field"]
    return found


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name.rstrip("_"): field for field in msgspec.structs.fields(kind)}
