"""What a config names outside itself: files that are sent along, folders that are too large to be."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prm_ray.errors import UserError

_FILES = ("problems.train", "problems.test", "import.source", "prompt.chat_template")
_FILES_OF_A_VERB = {"serve": ("serve.api_keys_file",), "processbench": ("processbench.source",)}
_FOLDERS = (
    *("model.name", "reference.model", "train.start", "score.model", "step_label.verifier"),
    *("select.mix", "serve.models"),
)


def named_files(settings: dict[str, Any], verb: str, root: Path) -> Iterator[str]:
    """Files of the working folder `root` that the settings of a run name, as paths from there.

    Absolute paths are taken for the cluster's. Raises `UserError` for a relative one that is not in the folder, and for
    a model or another run in it: those are not sent.
    """
    for setting in (*_FILES, *_FILES_OF_A_VERB.get(verb, ())):
        for value in _values(settings, setting):
            if _is_local(value) and value != "arithmetic":
                path = root / inside(root, root / value, f"{setting} {value!r}")
                if not path.exists():
                    raise UserError(
                        f"{setting} {value!r} is not in the working folder {str(root)!r}; "
                        "what is on the cluster's own storage needs an absolute path"
                    )
                yield from _files(root, path)
    for setting in _FOLDERS:
        for value in _values(settings, setting):
            if _is_local(value) and (root / value).is_dir():
                raise UserError(
                    f"{setting} {value!r} is a folder of this machine, which is not sent: put it on storage that all "
                    "nodes of the cluster share, and give its absolute path there"
                )


def check_shared(setting: str, value: str) -> str:
    """The folder of a run in one spelling, links apart. Raises `UserError` if it would be lost with the job."""
    if not value.startswith("/") and "://" not in value:
        raise UserError(
            f"{setting} {value!r} must be an absolute path on storage that all nodes of the cluster share: "
            "a job's own folder is removed when it is over"
        )
    return value.rstrip("/") if "://" in value else "/" + posixpath.normpath(value).lstrip("/")


def inside(root: Path, path: Path, what: str) -> str:
    """The path as seen from the working folder, in which it may be a link. Raises `UserError` if it is not in it."""
    for seen in (os.path.abspath, os.path.realpath):
        if (found := Path(seen(path))).is_relative_to(seen(root)):
            return found.relative_to(seen(root)).as_posix()
    raise UserError(
        f"{what} is outside the working folder {str(root)!r}, which is what is sent: choose another --working-dir"
    )


def _values(settings: dict[str, Any], setting: str) -> list[str]:
    section, key = setting.split(".")
    value = settings.get(section, {}).get(key)
    values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [str(each) for each in values if each is not None]


def _is_local(value: str) -> bool:
    """Neither absolute, nor in somebody's home folder, nor of a hub or another store."""
    return not value.startswith(("/", "~", "hf:")) and "://" not in value


def _files(root: Path, path: Path) -> Iterator[str]:
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file():
            yield each.relative_to(root).as_posix()
