"""`takeover` where the run lies in an object store: there are no links and no renames, so the state is copied, and an
object that is put last says that it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_ray.attempts import Attempt, is_earlier, workspaces
from prm_ray.errors import UserError
from prm_ray.folders import remove_leftover, write_file
from prm_ray.metricslog import METRICS_FILE
from prm_ray.objectstore import ObjectFolder, copy_tree
from prm_ray.storage import bytes_writer, json_writer
from prm_ray.tables import StageFolder
from prm_ray.trainerstate import is_whole

_WHOLE = "whole.json"
_TRIES = 5


@dataclass(frozen=True)
class _State:
    place: Path
    """Workspace of the attempt that it is of."""
    path: Path
    step: int


def take_over(folder: StageFolder, storage: str, taken: str) -> Path | None:
    """As `takeover.taken_over`; `storage` is Ray's folder in a workspace, `taken` the one to copy to."""
    mine = folder.shared_workspace
    if earlier := [] if folder.attempt is None else _places(folder.path, folder.attempt):
        _take_newest(mine, earlier, storage, taken)
        folder.check()
        for place in earlier:
            remove_leftover(place)
    return mine / taken if ObjectFolder(mine / taken).has(_WHOLE) else None


def _places(folder: Path, attempt: Attempt) -> list[Path]:
    """Workspaces of attempts before this one."""
    return [folder / name for name in workspaces(ObjectFolder(folder)) if is_earlier(name, attempt)]


def _take_newest(mine: Path, places: list[Path], storage: str, taken: str) -> None:
    """One that is still trained at may lose its checkpoint to the next one meanwhile; then that is tried. In the end
    an earlier one: of an attempt that is over the record may name what another has removed."""
    for is_last in [False] * (_TRIES - 1) + [True]:
        newest = sorted(_states(places, storage, taken), key=lambda state: state.step, reverse=True)
        if not newest:
            return
        for state in newest if is_last else newest[:1]:
            with suppress(FileNotFoundError):
                _take(state, mine, taken)
                return
    raise UserError(
        f"the checkpoints in {str(mine.parent)!r} come and go: is another attempt at work there? If none is, train "
        "from the start: --fresh and the name of the stage"
    )


def _take(state: _State, mine: Path, taken: str) -> None:
    """Raises `FileNotFoundError` if the state goes meanwhile, or went before: a late record may name what is gone."""
    remove_leftover(mine / taken)  # of a try before
    copy_tree(state.path, mine / taken)
    if not is_whole(ObjectFolder(mine / taken).names()):
        raise FileNotFoundError(str(state.path))
    if (metrics := ObjectFolder(state.place).read(METRICS_FILE)) is not None:
        write_file(mine / METRICS_FILE, bytes_writer(metrics))
    write_file(mine / taken / _WHOLE, json_writer({"step": state.step}))


def _states(places: list[Path], storage: str, taken: str) -> Iterator[_State]:
    """Of each place its last checkpoint that Ray has on record, or the one that it has itself taken over."""
    for place in places:
        record = _read(place, f"{storage}/checkpoint_manager_snapshot.json") or {}
        if (latest := record.get("latest_checkpoint_result")) is not None:
            yield _State(place, place / storage / latest["checkpoint_dir_name"], latest["metrics"]["step"])
        elif (whole := _read(place, f"{taken}/{_WHOLE}")) is not None:
            yield _State(place, place / taken, whole["step"])


def _read(place: Path, name: str) -> dict[str, Any] | None:
    content = ObjectFolder(place).read(name)
    return None if content is None else json.loads(content)
