"""The checkpoints of a training run: written by every worker that holds state, stored by Ray Train behind the steps.

A worker writes its share on a disk of its own machine and trains on; a thread copies that to the run's storage. Before
the next one is written, the one before must be on record: so a machine never holds two, and what a kill can cost are
the steps since the last but one.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from prm_ray.attempts import number_of
from prm_ray.folders import remove_leftover, scratch_folder, storing
from prm_ray.objectstore import arrow_file_system, file_system, is_remote
from prm_ray.stages.takeover import STORAGE, TAKEN
from prm_ray.storage import writing
from prm_ray.tables import StageFolder
from prm_ray.trainer import Trainer


def storage_settings(storage: Path) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints, as its settings say it: under the name that all machines have for it, with its
    links, which on the driver's machine may lead where the others have nothing."""
    if is_remote(storage):
        return {"storage_path": file_system(storage)[1], "storage_filesystem": arrow_file_system(storage)}
    return {"storage_path": str(storage.absolute())}


def stored_checkpoint(state: Path) -> Checkpoint:
    """A state on a disk, or at an address: from there the workers of a machine that get this very object fetch it
    once."""
    if is_remote(state):
        return Checkpoint(file_system(state)[1], arrow_file_system(state))
    return Checkpoint.from_directory(state)


class Checkpoints:
    """Those of one worker in one attempt."""

    def __init__(self, folder: StageFolder):
        self._workspace = folder.shared_workspace
        self._attempt, self._place = folder.attempt, _place_for_drafts(folder)
        self._drafts = self._place / ("attempt-0" if folder.attempt is None else folder.attempt.workspace)
        self._remove_drafts()
        self._has_reported = False
        self._owns_what_was_taken = ray.train.get_context().get_world_rank() == 0

    def resume(self, trainer: Trainer, taken: Checkpoint | None) -> None:
        """Go on from the last one that is on record, or from the state that was taken over, or from the start."""
        checkpoint = ray.train.get_checkpoint() or taken
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                trainer.load_state(Path(folder))

    def save(self, trainer: Trainer, loss: float) -> None:
        """Write this worker's share and have it stored. Raises `StorageError` if the machine's disk is full."""
        self.settle()
        checkpoint = None
        if trainer.has_state:
            self._drafts.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._drafts))
            with writing(folder):
                trainer.save_state(folder)
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            {"loss": loss, "step": trainer.num_steps},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._store,
        )
        self._has_reported = True

    def settle(self) -> None:
        """Wait until Ray has the last one on record; from then on nothing that was taken over is needed."""
        if self._has_reported:
            ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
            if self._owns_what_was_taken:
                remove_leftover(self._workspace / TAKEN)
                self._owns_what_was_taken = False

    def close(self) -> None:
        self.settle()
        self._remove_drafts()
        with suppress(OSError):  # another attempt's are there, or another worker was first
            self._place.rmdir()
            self._place.parent.rmdir()

    def _remove_drafts(self) -> None:
        """What workers left that were killed on this machine, whatever their rank was: of this attempt, an earlier one,
        or one with its number in a folder that was removed since. A newer one may be writing beside it."""
        for drafts in self._place.glob("attempt-*"):
            if self._attempt is None or number_of(drafts.name) <= self._attempt.number:
                shutil.rmtree(drafts, ignore_errors=True)

    def _store(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """In a thread. A failure is told in one line, as everywhere."""
        with storing(self._workspace / STORAGE):
            return ray.train.get_context().get_storage().persist_current_checkpoint(checkpoint, name)


def _place_for_drafts(folder: StageFolder) -> Path:
    """On this machine, where every attempt has a folder in it. A relative path may be that of another run too."""
    path = folder.path if is_remote(folder.path) else folder.path.resolve()
    return scratch_folder(path / "checkpoints")
