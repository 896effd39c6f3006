"""Models at an address, `s3://bucket/runs/x/checkpoint`: copied to this machine once, and again when they change."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from prm_ray.errors import StorageError, UserError
from prm_ray.objectstore import fetch, file_system, is_remote, location, reading_at
from prm_ray.storage import writing

_ADDRESS = ".address"
"""File in a copied folder that says where it comes from, and when somebody asked for the copy last."""
_KEPT_SECONDS = 24 * 3600
"""A copy that is no longer the address's model may still be in somebody's hands, who loads it now or soon."""


def local_copy(name: str) -> str:
    """The folder itself, or of an address the copy on this machine.

    Raises `UserError` if there is no model, `StorageError` if it cannot be read now, or there is no room for it here.
    """
    if not is_remote(name):
        return name
    source = location(name)
    files = _files(source)
    if "config.json" not in files and "adapter_config.json" not in files:
        raise UserError(f"model {name!r} does not exist; it must be the address of a model folder")
    key = sha256(repr((str(source), sorted(files.items()))).encode()).hexdigest()[:16]
    folder = cache_folder() / "remote" / key / source.name
    if not folder.is_dir():
        with _one_at_a_time(folder):
            _fetch(source, list(files), folder)
        _remove_older(source, folder)
    with suppress(OSError):  # a cache that came with an image may be read-only
        os.utime(folder / _ADDRESS)
    return str(folder)


def named_from(folder: str | Path, name: str) -> str:
    """A model that a copied folder names by its way from there, as an address; any other name as it is."""
    marker = Path(folder) / _ADDRESS
    if not marker.is_file() or os.path.isabs(name) or is_remote(name):
        return name
    protocol, _, way = marker.read_text(encoding="utf-8").partition("://")
    found = f"{protocol}://{os.path.normpath(os.path.join(way, name))}"
    return found if "config.json" in _files(location(found)) else name


def way_to(name: str, home: Path) -> str:
    """A model folder by its way from `home`, so that both can move together; any other name, and one in another bucket,
    as it is."""
    if not is_remote(name):
        return os.path.relpath(name, home) if Path(name).is_dir() and not is_remote(home) else name
    (protocol, _, way), (store, _, start) = name.partition("://"), str(home).partition("://")
    is_beside = (protocol, way.split("/")[0]) == (store, start.split("/")[0])
    return os.path.relpath(way, start) if is_beside else name


def cache_folder() -> Path:
    return Path(os.environ.get("PRM_RAY_CACHE") or Path.home() / ".cache" / "prm_ray")


def _files(source: Path) -> dict[str, str]:
    """Name -> what changes when the file does. Only what lies in the folder itself, as a model's files do; nothing of
    one that is not there."""
    fs, root = file_system(source)
    found: list[dict[str, Any]] = []
    with reading_at(source), suppress(FileNotFoundError):
        found = fs.ls(root, detail=True)
    return {
        each["name"].rpartition("/")[2]: str(each.get("ETag") or each.get("etag") or each.get("mtime"))
        for each in found
        if each["type"] == "file"
    }


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the workers of a machine, which all ask for the same model at once, one fetches it and the others wait."""
    with _writing_here():
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / ".lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(source: Path, names: list[str], folder: Path) -> None:
    if folder.is_dir():
        return
    with _writing_here():
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".fetching-"))
    try:
        for name in names:
            fetch(source / name, unfinished / name, disk=cache_folder())
        with _writing_here():
            (unfinished / _ADDRESS).write_text(str(source), encoding="utf-8")
        unfinished.rename(folder)
    except FileNotFoundError as error:
        raise StorageError(f"model {str(source)!r} was changed while it was copied: {error}") from None
    except OSError:
        if not folder.is_dir():  # else another process was first; its copy is as good
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _writing_here() -> Iterator[None]:
    """Whatever keeps the cache from being written is told with its folder, which a setting may move."""
    try:
        with writing(cache_folder()):
            yield
    except OSError as error:
        raise StorageError(f"{str(cache_folder())!r} (PRM_RAY_CACHE) cannot be written: {error}") from None


def _remove_older(source: Path, kept: Path) -> None:
    """Copies of what lay at this address before, unless somebody asked for them within a day."""
    for marker in (cache_folder() / "remote").glob(f"*/{source.name}/{_ADDRESS}"):
        with suppress(OSError):  # another process removes it too
            is_older = marker.parent != kept and marker.read_text(encoding="utf-8") == str(source)
            if is_older and time.time() - marker.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(marker.parent.parent)
