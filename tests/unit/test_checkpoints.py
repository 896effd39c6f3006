"""Where training stores its state, and what it leaves on the disk of a worker's machine, when workers are killed there
and attempts overlap."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train

from prm_ray.stages.checkpoints import Checkpoints, storage_settings
from prm_ray.tables import StageFolder
from tests.unit.test_attempts import attempt_at


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder for such files."""
    (place := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def worker(folder: StageFolder, rank: int, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: rank))
    return Checkpoints(folder)


def write(checkpoints: Checkpoints, name: str) -> Path:
    """As `save` does before Ray stores it."""
    checkpoints._drafts.mkdir(parents=True, exist_ok=True)
    (draft := checkpoints._drafts / name).write_bytes(b"state")
    return draft


def test_an_older_attempt_that_goes_on_leaves_the_newer_ones_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one machine, as the same worker: when it starts again for what the newer one removed, and when it ends."""
    older, newer = attempt_at(tmp_path / "run", "train"), attempt_at(tmp_path / "run", "train")
    draft = write(worker(newer, 0, monkeypatch), "draft")
    again = worker(older, 0, monkeypatch)
    again.close()
    assert draft.is_file()


def test_a_killed_workers_checkpoint_goes_when_training_goes_on_there_as_another_worker(
    tmp_path: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = attempt_at(tmp_path / "run", "train"), attempt_at(tmp_path / "run", "train")
    left = [write(worker(older, 3, monkeypatch), "draft"), write(worker(newer, 3, monkeypatch), "draft")]
    training = worker(newer, 1, monkeypatch)
    assert not any(draft.exists() for draft in left)
    write(training, "last")
    training.close()
    assert not [path for path in machine.rglob("*") if path.is_file() or "checkpoints" in path.name]


def test_runs_beside_each_other_have_checkpoints_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = write(worker(attempt_at(tmp_path / "run", "train"), 0, monkeypatch), "draft")
    worker(attempt_at(tmp_path / "other", "train"), 0, monkeypatch).close()
    assert draft.is_file()


def test_what_a_killed_worker_left_goes_with_a_run_of_the_same_name_that_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was removed: its attempts have the numbers of the new one's."""
    left = write(worker(attempt_at(tmp_path / "run", "train"), 0, monkeypatch), "draft")
    shutil.rmtree(tmp_path / "run")
    worker(attempt_at(tmp_path / "run", "train"), 1, monkeypatch)
    assert not left.exists()


def test_runs_of_one_name_in_two_folders_have_checkpoints_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        drafts.append(write(worker(attempt_at(Path("runs/demo"), "train"), 0, monkeypatch), "draft"))
    assert all(draft.is_file() for draft in drafts)


def test_what_an_older_attempt_writes_at_its_end_goes_with_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = attempt_at(tmp_path / "run", "train"), attempt_at(tmp_path / "run", "train")
    late, training = worker(older, 0, monkeypatch), worker(newer, 0, monkeypatch)
    draft = write(late, "draft")
    training.close()
    assert not draft.exists()


def test_workers_store_under_the_name_of_the_run_folder_not_where_the_drivers_link_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a head that is the NFS server too: /shared is a link there, and the others mount what is behind it."""
    (tmp_path / "export").mkdir()
    (shared := tmp_path / "shared").symlink_to("export")
    assert storage_settings(shared / "run/checkpoint") == {"storage_path": str(shared / "run/checkpoint")}
    monkeypatch.chdir(tmp_path)
    assert storage_settings(Path("shared/run")) == {"storage_path": str(shared / "run")}
