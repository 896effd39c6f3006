"""Words of the command line, `section.key=value`, put over the sections of a file."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from prm_ray.errors import UserError

TABLES = ("generate.engine_options", "import.fields", "serve.models")
"""Settings whose keys are names of the user's own."""


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> None:
    """Put the values of `section.key=value` words into `data`; `section.key=` takes the file's value out.
    `section.key.name=value` is one entry of a setting that is a table.

    Raises `UserError` for `run.dir=`, which is more often a shell's variable without a value than the wish for a run in
    the default folder.
    """
    for override in overrides:
        _apply_override(data, override)


def _apply_override(data: dict[str, Any], override: str) -> None:
    match = re.fullmatch(r"(\w+)\.(\w+)(?:\.([^=\s]+))?=(.*)", override, flags=re.DOTALL)
    if not match:
        raise UserError(f"override {override!r} must have the form section.key=value (or be a stage, behind --fresh)")
    *path, text = (part for part in match.groups() if part is not None)
    if path == ["run", "dir"] and not text.strip():
        raise UserError(f"override {override!r} is empty: run.dir must be a folder, or left out for the file's own")
    if len(path) == 3 and ".".join(path[:2]) not in TABLES:
        setting = ".".join(path[:2])
        raise UserError(
            f"override {override!r}: {setting} is no table; section.key.name=value is for {', '.join(TABLES)}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = data
    for depth, part in enumerate(path[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"config key {'.'.join(path[:depth])!r} must be a {'section' if depth == 1 else 'table'}")
    if text:
        table[path[-1]] = value
    else:
        table.pop(path[-1], None)
