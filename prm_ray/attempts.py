"""Attempts: which start of a run is the newest, where its unfinished work lies, and whose work counts.

A job that is started again may overlap with the process it replaces: a pod that was given up for dead and goes on
writing. So each start of a run draws a number, higher than all before it, and an id of its own. In the folder of a
stage it leaves `attempts/NUMBER.json`, which tells others of it, and which it looks for before it writes: if that file
is gone, the folder is not the one it began. Beside it lies a workspace, `attempt-NUMBER-ID`, for all that only one
attempt can make; `finish` chooses one of them for good, and moves what lies there to where it belongs.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prm_ray.errors import TakenOverError
from prm_ray.folders import Folder, make_folder, open_folder, remove_leftover, scratch_folder
from prm_ray.objectstore import ObjectFolder, is_remote, upload
from prm_ray.storage import json_writer

FOLDER = "attempts"
MANIFEST = "manifest.json"
FINISHED = "finished.json"


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    number: int
    id: str
    host: str
    pid: int
    started_at: str

    @property
    def file(self) -> str:
        return f"{FOLDER}/{self.number:05d}.json"

    @property
    def workspace(self) -> str:
        """Name of the folder for its unfinished work, inside the folder of a stage."""
        return f"attempt-{self.number:05d}-{self.id}"

    def __str__(self) -> str:
        return f"attempt {self.number} (process {self.pid} on {self.host}, since {self.started_at})"


def draw(run_dir: Path) -> Attempt:
    """A new attempt at the run, whose number is higher than any that the run or a stage of it has seen."""
    make_folder(run_dir / FOLDER)
    number = 0
    with open_folder(run_dir) as folder:
        while True:
            seen = [*run_dir.glob(f"{FOLDER}/*.json"), *run_dir.glob(f"*/{FOLDER}/*.json")]
            number = 1 + max([number, *(int(path.stem) for path in seen)])  # a listing over NFS may be old
            now = datetime.now(UTC).isoformat(timespec="seconds")
            attempt = Attempt(number, secrets.token_hex(4), os.uname().nodename, os.getpid(), now)
            if folder.put_new(attempt.file, json_writer(asdict(attempt))):
                return attempt


def newest(folder: Folder) -> Attempt | None:
    """The last attempt that has begun the stage whose folder this is."""
    numbers = [name for name in folder.names(FOLDER) if name.endswith(".json")]
    content = folder.read(f"{FOLDER}/{numbers[-1]}") if numbers else None
    return None if content is None else Attempt(**json.loads(content))


def num_begun(folder: Folder) -> int:
    return sum(name.endswith(".json") for name in folder.names(FOLDER))


def workspaces(folder: Folder) -> list[str]:
    """Names of the folders with unfinished work of attempts, oldest first."""
    return [name for name in folder.names() if name.startswith("attempt-")]


def is_earlier(workspace: str, attempt: Attempt) -> bool:
    """Is this the workspace of an attempt before this one? Of a later one it may be there before all can see that the
    attempt has begun, and nobody but that one and those after it may touch it."""
    return number_of(workspace) < attempt.number


def number_of(workspace: str) -> int:
    """That of the attempt whose workspace it is."""
    return int(workspace.split("-")[1])


def enter(path: Path, attempt: Attempt, is_fenced: bool) -> None:
    """Tell others that this attempt works in the folder of a stage. Raises `TakenOverError` as `hold` does."""
    try:
        with open_folder(path) as folder:
            if is_fenced:  # before it is told of: else the newer one would have to look who came in which order
                _check_newest(folder, attempt)
            folder.make_folder(FOLDER)
            folder.make_folder(attempt.workspace)
            folder.put_new(attempt.file, json_writer(asdict(attempt)))
    except FileNotFoundError:  # nothing that could be missing was there before
        raise _removed(path, attempt, None) from None


@contextmanager
def hold(path: Path, attempt: Attempt, is_fenced: bool) -> Iterator[Folder]:
    """The very folder that this attempt has entered, held open: what is written goes there, or nowhere.

    Raises `TakenOverError` if the folder was removed since, or, with `is_fenced`, if a newer attempt has entered it.
    """
    try:
        held = open_folder(path, attempt.workspace)
    except FileNotFoundError:
        raise _removed(path, attempt, None) from None
    with held:
        if not _is_marked(held, attempt):
            raise _removed(path, attempt, newest(held))
        if is_fenced:
            _check_newest(held, attempt)
            if held.has(MANIFEST):
                raise TakenOverError(f"{str(path)!r} was finished by another attempt: {attempt} ends here")
        try:
            yield held
        except FileNotFoundError:  # it may have gone with the folder, which gets another name before it goes
            if isinstance(held, ObjectFolder) or (held.is_in_place() and _is_marked(held, attempt)):
                raise
            raise _removed(path, attempt, None) from None
        if isinstance(held, ObjectFolder) and held.put and not _is_marked(held, attempt):  # removed meanwhile
            for name in held.put:
                held.remove(name)
            raise _removed(path, attempt, newest(held))


def workspace(path: Path, attempt: Attempt) -> Path:
    """Where the attempt writes all but parts; of an object store on this machine, until it is finished."""
    place = path / attempt.workspace
    return scratch_folder(place) if is_remote(place) else place


def is_current(path: Path, attempt: Attempt, is_fenced: bool) -> bool:
    """The folder is the one that the attempt has entered, and, with `is_fenced`, no newer one has."""
    with open_folder(path) as folder:
        last = newest(folder) if is_fenced else None
        return _is_marked(folder, attempt) and (last is None or last.number <= attempt.number)


def finish(path: Path, attempt: Attempt, is_fenced: bool, manifest: dict[str, Any]) -> None:
    """Put in place what lies in the attempt's workspace, and the manifest last.

    Of attempts that overlap the first one to get here counts; the others leave its work and its manifest as they are.
    """
    with hold(path, attempt, is_fenced) as folder:
        if not folder.has(FINISHED):
            if is_remote(path):
                upload(workspace(path, attempt), path / attempt.workspace)
            folder.replace(f"{attempt.workspace}/{MANIFEST}", json_writer(manifest))
            folder.put_new(FINISHED, json_writer({"workspace": attempt.workspace}))
    complete(path)
    if is_remote(path):
        remove_leftover(workspace(path, attempt))


def complete(path: Path) -> bool:
    """Go on with what `finish` began, if an attempt got that far and was killed. Is the folder finished now?"""
    try:
        held = open_folder(path)
    except FileNotFoundError:
        return False
    with held as folder:
        if (finished := folder.read(FINISHED)) is None:
            return folder.has(MANIFEST)
        winner = json.loads(finished)["workspace"]
        if folder.has(f"{winner}/{MANIFEST}"):
            _publish(folder, winner)
        elif not folder.has(MANIFEST):  # somebody has removed it, to have the stage done again
            folder.remove(FINISHED)
            return False
        leftover = workspaces(folder)
    for name in leftover:
        remove_leftover(path / name)
    return True


def _publish(folder: Folder, workspace: str) -> None:
    """Move the files of a finished attempt to where they belong, the manifest last.

    Several may do it at once, or one after the other was killed: each file is moved by one of them.
    """
    for name in sorted(_files(folder, workspace), key=lambda name: name == MANIFEST):
        for parent in reversed(Path(name).parents[:-1]):
            folder.make_folder(str(parent))
        with suppress(FileNotFoundError):
            folder.move(f"{workspace}/{name}", name)


def _files(folder: Folder, inside: str) -> Iterator[str]:
    """All but hidden ones, which are what the attempt itself needed."""
    for name in folder.names(inside):
        if name.startswith("."):
            continue
        if folder.is_folder(f"{inside}/{name}"):
            yield from (f"{name}/{each}" for each in _files(folder, f"{inside}/{name}"))
        else:
            yield name


def _is_marked(folder: Folder, attempt: Attempt) -> bool:
    found = folder.read(attempt.file)
    return found is not None and json.loads(found)["id"] == attempt.id


def _check_newest(folder: Folder, attempt: Attempt) -> None:
    last = newest(folder)
    if last is not None and last.number > attempt.number:
        raise TakenOverError(f"{last} has taken over {str(folder.path)!r} from {attempt}, which ends here")


def _removed(path: Path, attempt: Attempt, by: Attempt | None) -> TakenOverError:
    anew = "" if by is None else f", and {by} has begun it anew"
    return TakenOverError(f"{str(path)!r} was removed (--fresh){anew}: {attempt} ends here")
