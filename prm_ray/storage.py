"""Files that appear whole or not at all, on a disk that several machines share.

A new file is put in place under a name that must not be there yet (the first writer wins), or takes the place of an
older one. Both happen inside a folder that is held open: if somebody moves that folder away meanwhile, what is written
goes with it, and nothing of it appears in a new folder of the same name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from prm_ray.errors import StorageError

Write = Callable[[BinaryIO], None]
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class HeldFolder:
    """A folder held open by its handle; names are seen from it and may have `/` in them.

    Unfinished files get names in `drafts`, a folder inside it, or beside where they are put.
    """

    def __init__(self, path: Path, drafts: str = ""):
        self.path, self._drafts = path, drafts
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> HeldFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._handle)

    def read(self, name: str) -> bytes | None:
        """None if there is no such file."""
        try:
            handle = os.open(name, os.O_RDONLY, dir_fd=self._handle)
        except FileNotFoundError:
            return None
        with os.fdopen(handle, "rb") as file:
            return file.read()

    def names(self, folder: str = ".") -> list[str]:
        """Of what lies in a folder inside, sorted; none if there is no such folder."""
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._handle)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(handle))
        finally:
            os.close(handle)

    def is_in_place(self) -> bool:
        """It is still what lies at its path: nobody has given it another name, or removed it."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._handle)
        except FileNotFoundError:
            return False
        return True

    def is_folder(self, name: str) -> bool:
        return stat.S_ISDIR(os.stat(name, dir_fd=self._handle).st_mode)

    def make_folder(self, name: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._handle)

    def put_new(self, name: str, write: Write) -> bool:
        """Put a whole file where none is; False, and nothing is changed, if another one is there already."""
        if self.has(name):
            return False
        with self._draft(name, write) as draft:
            try:
                os.link(draft, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
            except FileExistsError:
                return self._is_same(draft, name)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._put_without_link(draft, name)
        return True

    def replace(self, name: str, write: Write) -> None:
        """Put a whole file in place of what is there."""
        with self._draft(name, write) as draft:
            self.move(draft, name)

    def move(self, source: str, name: str) -> None:
        os.replace(source, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._handle)

    @contextmanager
    def _draft(self, name: str, write: Write) -> Iterator[str]:
        """A file with what `write` writes, on the disk and closed; gone again behind the block."""
        folder = self._drafts or os.path.dirname(name)
        draft = os.path.join(folder, f".{os.path.basename(name)}.{uuid.uuid4().hex}.tmp")
        with writing(self.path / name):
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._handle)
        try:
            with writing(self.path / name), os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            self.remove(draft)

    def _is_same(self, draft: str, name: str) -> bool:
        """Over NFS an answer may be lost: the link was made, and the second try finds it."""
        return os.path.samestat(os.stat(draft, dir_fd=self._handle), os.stat(name, dir_fd=self._handle))

    def _put_without_link(self, draft: str, name: str) -> bool:
        """On a mount without hard links: here two writers within microseconds could both win, so the last one does."""
        if self.has(name):
            return False
        self.move(draft, name)
        return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises `StorageError` with what to do if the disk is full, or nothing may be written there."""
    try:
        yield
    except Exception as error:  # libraries in Rust have types of their own for it, or none
        if failure := storage_failure(path, error):
            raise failure from None
        raise


def storage_failure(path: Path, error: Exception) -> StorageError | None:
    """What to tell of an error in writing a file; None if it is of another kind."""
    number = error_number(error)
    if number in _FULL:
        advice = "make room there, then run the same command again; what is finished is kept"
    elif number in _FORBIDDEN:
        advice = "it must lie in a folder that can be written to"
    else:
        return None
    return StorageError(f"{str(path)!r} cannot be written: {os.strerror(number or 0)}; {advice}")


def error_number(error: BaseException) -> int | None:
    """The system's number of an error. Safetensors and tokenizers, written in Rust, have it in their text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = _NUMBER_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def json_writer(value: Any) -> Write:
    return bytes_writer((json.dumps(value, indent=2, default=str) + "\n").encode())


def bytes_writer(content: bytes) -> Write:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write
