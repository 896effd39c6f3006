"""Folders in an object store: `s3://bucket/runs/x`, `gs://...`, or another address that fsspec has a file system for.

Objects appear whole by themselves; what is put where none is yet is a conditional write, which the store decides. A
folder there cannot be held open or renamed: that an attempt may still write is looked up before and after it did.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from prm_ray.errors import StorageError, UserError
from prm_ray.storage import Write, storage_failure

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://")
_PACKAGES = {**dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")), **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gcs"))}
"""Protocol -> its package, and the extra of this project that installs it."""
_MULTIPART_BYTES = 16 * 1024 * 1024
"""Of a piece of an object on S3; what is at least twice as large is written in pieces."""


def is_remote(name: object) -> bool:
    """An address with `://` in it, and not a path of this machine."""
    return _ADDRESS.match(str(name)) is not None


def location(name: str | Path) -> Path:
    """A path of this machine, absolute; of an address what can be used like one.

    Raises `UserError` for an address whose file system is not known or not installed.
    """
    if not is_remote(name):
        return Path(name).expanduser().absolute()
    protocol = str(name).split("://")[0]
    try:
        from upath import UPath

        path = UPath(str(name).rstrip("/"), use_listings_cache=False)
        _ = path.fs
    except ImportError:
        package, extra = _PACKAGES.get(protocol, ("the package that fsspec names for it", "s3"))
        raise UserError(
            f"{str(name)!r} needs universal_pathlib and {package}: pip install 'prm-ray[{extra}]'"
        ) from None
    except ValueError as error:
        raise UserError(f"{str(name)!r} is an address that fsspec does not know: {error}") from None
    return cast(Path, path)


def file_system(path: Path) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    remote = cast(Any, path)
    return remote.fs, remote.path


def arrow_source(path: Path) -> tuple[str | Path, Any]:
    """A file and its file system (None: this machine's), as pyarrow's functions take them."""
    if not is_remote(path):
        return path, None
    fs, name = file_system(path)
    return name, fs


def check_reachable(path: Path) -> None:
    """Raises `UserError` if the bucket is not there, or these credentials may not list it."""
    fs, name = file_system(path)
    with reading_from(path):
        with suppress(FileNotFoundError):
            fs.ls(name, detail=False)
            return
        fs.ls(name.split("/")[0], detail=False)


def check_answers(path: Path) -> None:
    """Raises `UserError` if nobody can be asked what is at an address; there need not be anything."""
    fs, name = file_system(path)
    with reading_from(path), suppress(FileNotFoundError):
        fs.ls(name, detail=False)


@contextmanager
def reading_from(path: Path) -> Iterator[None]:
    """Raises `UserError` if what is read there is not there or cannot be reached."""
    try:
        with _translated(path, "reached"):
            yield
    except (StorageError, FileNotFoundError) as error:
        reason = str(error) if isinstance(error, StorageError) else f"{str(path)!r} cannot be reached: {error}"
        raise UserError(reason) from None


@contextmanager
def refusal_is_bad_input() -> Iterator[None]:
    """For what is read at a start: raises `UserError` where a store says that these credentials may not. One that is
    away may be there at the next try: that stays a `StorageError`."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise UserError(str(error)) from None
        raise


class ObjectFolder:
    """As `storage.HeldFolder`, of an address. `put` lists what was put new: who was not allowed to takes it away."""

    def __init__(self, path: Path):
        self.path, self.put = path, list[str]()
        self._fs, self._root = file_system(path)

    def __enter__(self) -> ObjectFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is held."""

    def read(self, name: str) -> bytes | None:
        with _translated(self.path / name, "read"), suppress(FileNotFoundError):
            return self._fs.cat_file(self._at(name))
        return None

    def names(self, folder: str = ".") -> list[str]:
        at = self._root if folder == "." else self._at(folder)
        with _translated(self.path / folder, "read"), suppress(FileNotFoundError):
            found = (entry.rstrip("/").rpartition("/")[2] for entry in self._fs.ls(at, detail=False))
            return sorted(name for name in found if name and name != at.rpartition("/")[2])
        return []

    def has(self, name: str) -> bool:
        with _translated(self.path / name, "read"):
            return self._fs.isfile(self._at(name))

    def is_folder(self, name: str) -> bool:
        with _translated(self.path / name, "read"):
            return self._fs.isdir(self._at(name))

    def make_folder(self, name: str) -> None:
        """There are none: a name with `/` in it is enough."""

    def put_new(self, name: str, write: Write) -> bool:
        if self.has(name):
            return False
        try:
            self._write(name, write, "create")
        except FileExistsError:
            return False
        self.put.append(name)
        return True

    def replace(self, name: str, write: Write) -> None:
        self._write(name, write, "overwrite")

    def move(self, source: str, name: str) -> None:
        with _translated(self.path / name, "written"):
            self._fs.copy(self._at(source), self._at(name))
        self.remove(source)

    def remove(self, name: str) -> None:
        with _translated(self.path / name, "removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, name: str, write: Write, mode: str) -> None:
        content = BytesIO()
        write(content)
        pieces = {"chunksize": _MULTIPART_BYTES} if "s3" in self._fs.protocol else {}
        with _translated(self.path / name, "written"):
            try:
                self._fs.pipe_file(self._at(name), content.getvalue(), mode=mode, **pieces)
            except FileNotFoundError as error:  # of writing: there is no such bucket
                raise StorageError(f"{str(self.path / name)!r} cannot be written: {error}") from None


def remove_tree(path: Path) -> None:
    """The manifest goes first, then the marks of attempts, which so learn of it; then all the rest."""
    folder = ObjectFolder(path)
    folder.remove("manifest.json")
    fs, name = file_system(path)
    with _translated(path, "removed"):
        for each in (f"{name}/attempts", name):
            with suppress(FileNotFoundError):
                fs.rm(each, recursive=True)


def upload(source: Path, target: Path) -> None:
    """Put all files below a folder of this machine, but hidden ones."""
    fs, root = file_system(target)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            with writing_at(target / str(name)):
                fs.put_file(str(path), f"{root}/{name}")


def copy_tree(source: Path, target: Path) -> None:
    """Copy all objects below an address, within the store. Raises `FileNotFoundError` if one has gone meanwhile."""
    fs, root = file_system(source)
    _, there = file_system(target)
    for name in fs.find(root):
        with writing_at(target):
            fs.copy(name, there + name.removeprefix(root))


@contextmanager
def downloaded(path: Path) -> Iterator[Path]:
    """A copy of one file on this machine, gone again behind the block; who has mapped it keeps it."""
    with tempfile.TemporaryDirectory(prefix="prm_ray-") as folder:
        here = Path(folder) / path.name
        fetch(path, here, disk=Path(folder))
        yield here


def fetch(path: Path, here: Path, disk: Path) -> None:
    """Copy one file to this machine. Raises `StorageError` if it cannot be read, or `disk`, a folder above `here`, is
    full; `FileNotFoundError` if it is not there."""
    fs, name = file_system(path)
    with reading_at(path):
        try:
            fs.get_file(name, str(here))
        except PermissionError:  # the store's: the file here was made by who calls
            raise
        except OSError as error:
            raise storage_failure(disk, error) or error from None


def arrow_file_system(path: Path) -> Any:
    """The file system of an address, as pyarrow's own are; picklable."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(file_system(path)[0]))


@contextmanager
def writing_at(path: Path) -> Iterator[None]:
    """Raises `StorageError` for what cannot be written at an address."""
    with _translated(path, "written"):
        yield


@contextmanager
def reading_at(path: Path) -> Iterator[None]:
    """Raises `StorageError` for what cannot be read at an address: the next try may. Not for what is not there."""
    with _translated(path, "read"):
        yield


@contextmanager
def _translated(path: Path, done: str) -> Iterator[None]:
    """Client libraries raise many types; what is no missing or existing file is told in one line."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, StorageError, UserError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise StorageError(
            f"{str(path)!r} cannot be {done}: {reason[0]} (credentials and endpoint come from the environment, "
            "AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL ..., or the usual files)"
        ) from (error if isinstance(error, PermissionError) else None)
