"""Folders wherever they are, on a disk or in an object store: opened to be written in, made, removed, noted in."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from prm_ray import objectstore
from prm_ray.errors import StorageError
from prm_ray.objectstore import ObjectFolder, is_remote
from prm_ray.storage import HeldFolder, Write, bytes_writer, writing

Folder = HeldFolder | ObjectFolder


class Notes:
    """Lines that outlive the process that writes them, and that workers on all machines see.

    A file; at an address, where nothing can be added to an object, a folder with an object a line.
    """

    def __init__(self, path: Path):
        self._path = path

    def add(self, line: str) -> None:
        if not is_remote(self._path):
            with writing(self._path), self._path.open("a") as file:
                file.write(f"{line}\n")
            return
        with ObjectFolder(self._path) as folder:
            name = f"{len(folder.names()):06d}-{uuid.uuid4().hex}"  # of two at the same moment none is lost
            folder.replace(name, bytes_writer(line.encode()))

    def lines(self) -> list[str]:
        """In the order they were added."""
        if not is_remote(self._path):
            return self._path.read_text().splitlines()
        with ObjectFolder(self._path) as folder:
            found = [folder.read(name) for name in folder.names()]
        return [line.decode() for line in found if line is not None]

    def remove(self) -> None:
        if not is_remote(self._path):
            self._path.unlink(missing_ok=True)
            return
        with ObjectFolder(self._path) as folder:
            for name in folder.names():
                folder.remove(name)


def open_folder(path: Path, drafts: str = "") -> Folder:
    """Raises `FileNotFoundError` if it is not there; in an object store it always is."""
    return ObjectFolder(path) if is_remote(path) else HeldFolder(path, drafts)


def make_folder(path: Path) -> None:
    """With all above it. In an object store nothing has to be made; a bucket is not. Raises `StorageError`
    where no folder can be made at all."""
    if not is_remote(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # as under /proc, or where a mount comes by itself and does not
            raise StorageError(f"{str(path)!r} cannot be made: no folder can be made above it") from None


def write_file(path: Path, write: Write, drafts: Path | None = None) -> None:
    """Write one file whole or not at all, in place of what is there.

    `drafts` is a folder on the same disk for what is not whole yet: who is killed meanwhile leaves it there. None =
    beside the file.
    """
    with open_folder(path.parent, "" if drafts is None else str(drafts.absolute())) as folder:
        folder.replace(path.name, write)


def remove_folder(path: Path) -> None:
    """At once, so that who still writes in it does so elsewhere: it gets another name before it goes."""
    if is_remote(path):
        objectstore.remove_tree(path)
        return
    with writing(path), suppress(FileNotFoundError):
        path.rename(path.with_name(f".removed-{path.name}-{uuid.uuid4().hex}"))
    for folder in path.parent.glob(f".removed-{path.name}-*"):  # of an earlier, killed start too
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def filling(path: Path) -> Iterator[Path]:
    """A folder of this machine to put files in: `path` itself, or of an address one whose files are there afterwards.

    Raises `StorageError` if the disk is full, or the store takes nothing.
    """
    if not is_remote(path):
        with writing(path):
            yield path
        return
    with tempfile.TemporaryDirectory(prefix="prm_ray-") as here:
        with writing(Path(here)):
            yield Path(here)
        objectstore.upload(Path(here), path)


def storing(path: Path) -> AbstractContextManager[None]:
    """Raises `StorageError` with what to do for what somebody else's code cannot write there."""
    return objectstore.writing_at(path) if is_remote(path) else writing(path)


def remove_leftover(path: Path) -> None:
    """What nobody needs any more, as far as that can be done."""
    if is_remote(path):
        objectstore.remove_tree(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def scratch_folder(path: Path) -> Path:
    """Where on this machine to write what will lie at that path or address. Raises `StorageError` if somebody else has
    made the place, and so could read and change what is in it."""
    base = Path(tempfile.gettempdir()) / f"prm_ray-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise StorageError(f"{str(base)!r} must be a folder of yours: set TMPDIR to another place for such files")
    folder = base / sha256(str(path).encode()).hexdigest()[:16] / path.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
