"""What a training run takes over from an earlier attempt: its last checkpoint and the metrics up to there.

The earlier attempt may still run, and removes each checkpoint when it has the next. So the files are linked into the
new attempt's workspace, where nobody else removes them, and then the earlier one's workspace goes: it cannot store any
more there.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from prm_ray.attempts import Attempt, is_earlier
from prm_ray.errors import UserError
from prm_ray.metricslog import METRICS_FILE
from prm_ray.objectstore import is_remote
from prm_ray.stages.objecttakeover import take_over
from prm_ray.storage import writing
from prm_ray.tables import StageFolder
from prm_ray.trainerstate import StoredState

STORAGE, TAKEN = ".ray_train", ".taken-over"
"""Folders in a workspace: Ray Train's own, and the state that was taken over."""
RUN_NAME = "fit"
_TRIES = 5


def taken_over(folder: StageFolder) -> Path | None:
    """Folder of the state to go on from, in this attempt's workspace; None if there is none to take over.

    Raises `UserError` naming a file of it that is damaged; then nothing is removed.
    """
    if is_remote(folder.path):
        return take_over(folder, f"{STORAGE}/{RUN_NAME}", TAKEN)
    taken = folder.workspace / TAKEN
    earlier = [] if folder.attempt is None else _places(folder.path, folder.attempt)
    if earlier and not (folder.workspace / STORAGE).is_dir():
        _take_newest(folder, earlier)
        folder.check()
        for place in earlier:
            _remove(place / STORAGE if place == folder.path else place, folder.workspace)
    return taken if taken.is_dir() else None


def _remove(path: Path, workspace: Path) -> None:
    """First out of sight of those who look for checkpoints: if this attempt is killed here, what is half removed would
    be a damaged one to the next."""
    gone = workspace / f".removed-{path.name}"
    with suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _places(folder: Path, attempt: Attempt) -> list[Path]:
    """Where attempts before this one have worked: their workspaces, and of earlier versions the folder itself."""
    found = [path for path in folder.glob("attempt-*") if path.is_dir() and is_earlier(path.name, attempt)]
    return sorted([*found, *([folder] if (folder / STORAGE).is_dir() else [])])


def _take_newest(folder: StageFolder, places: list[Path]) -> None:
    """From the place that got farthest. One that is still trained at may lose its checkpoint to the next one meanwhile;
    then that is tried."""
    for _ in range(_TRIES):
        states = {place: state for place in places if (state := _state_of(place)) is not None}
        if not states:
            return
        try:
            _take(folder, max(states, key=lambda place: _step_of(states[place])), states)
            return
        except UserError:
            if all(_state_of(place) == state for place, state in states.items()):
                raise
    raise UserError(f"the checkpoints in {str(folder.path)!r} come and go: is another attempt at work there?")


def _take(folder: StageFolder, place: Path, states: dict[Path, Path]) -> None:
    """The state last, and whole or not at all, so that an attempt that is killed here has taken over nothing."""
    draft = folder.workspace / f"{TAKEN}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with writing(draft):
            shutil.copytree(states[place], draft, copy_function=_link_or_copy)
            if (place / METRICS_FILE).is_file():
                shutil.copyfile(place / METRICS_FILE, folder.workspace / METRICS_FILE)
    except (FileNotFoundError, shutil.Error) as error:
        raise UserError(f"the checkpoint {str(states[place])!r} cannot be read: {error}") from None
    _step_of(draft)
    draft.rename(folder.workspace / TAKEN)


def _state_of(place: Path) -> Path | None:
    """Its last checkpoint that Ray has on record, or the one that it has itself taken over."""
    record = place / STORAGE / RUN_NAME / "checkpoint_manager_snapshot.json"
    if record.is_file():
        try:
            latest = json.loads(record.read_text(encoding="utf-8"))["latest_checkpoint_result"]
        except json.JSONDecodeError:  # Ray was killed while it wrote that, in place
            return _newest_whole(record.parent)
        if latest is not None:
            return record.parent / latest["checkpoint_dir_name"]
    return place / TAKEN if (place / TAKEN).is_dir() else None


def _newest_whole(folder: Path) -> Path | None:
    """Of the checkpoints in Ray's folder: those that workers were about to store are not whole."""
    steps: dict[Path, int] = {}
    for path in folder.glob("checkpoint_*"):
        with suppress(UserError):
            steps[path] = _step_of(path)
    return max(steps, key=steps.__getitem__, default=None)


def _step_of(state: Path) -> int:
    with StoredState(state) as stored:
        return int(stored.scalar("num_steps"))


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # storage without hard links
        shutil.copyfile(source, target)
    return target
