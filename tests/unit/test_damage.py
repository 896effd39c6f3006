"""A full disk, a folder that is read-only, files that are cut off: one line that names the file, nothing else lost."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from prm_ray.config import RunConfig
from prm_ray.entry import failing_in_one_line
from prm_ray.errors import StorageError, UserError
from prm_ray.metricslog import MetricsLog
from prm_ray.models import load_model
from prm_ray.parquetfiles import read_parquet, write_parquet
from prm_ray.stages import takeover
from prm_ray.stages.pipeline import known_cause, run_stage
from prm_ray.stages.result import count_parts
from prm_ray.tables import StageFolder
from prm_ray.trainerstate import StoredState, write_shard
from tests.disks import memory_disk
from tests.tables_by_hand import mark_done
from tests.unit.test_attempts import attempt_at
from tests.unit.test_pipeline import BEFORE_RERANK, finish_by_hand, make_config, score_row


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def line_of(work: Callable[[], object], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """What a user sees who runs this on the command line."""
    with pytest.raises(SystemExit) as ended, failing_in_one_line():
        work()
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert ended.value.code == code and line.startswith("prm-ray: error: ")
    return line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    with memory_disk(tmp_path / "disk", "size=64k") as folder:
        yield folder


def test_a_full_disk_is_told_and_the_next_start_goes_on(small_disk: Path, capsys: pytest.CaptureFixture[str]):
    folder = attempt_at(small_disk, "generate")
    folder.write_part(0, [{"prompt_id": "p", "text": "kept"}])
    rows = [{"prompt_id": "p", "text": os.urandom(100_000).hex()}]
    line = line_of(lambda: folder.write_part(1, rows), capsys, 1)
    assert "responses/part-00001.parquet' cannot be written: No space left on device; make room there" in line
    assert [row["text"] for row in folder.rows()] == ["kept"] and folder.finished_parts() == [0]
    assert not list(folder.workspace.iterdir()), "half a file fills the disk further"
    folder.write_part(1, [{"prompt_id": "p", "text": "fits"}])
    assert [row["text"] for row in folder.rows()] == ["kept", "fits"]


LIMITED = """
import resource, signal, sys
from prm_ray.entry import failing_in_one_line
from prm_ray.metricslog import MetricsLog
from prm_ray.tables import StageFolder, write_json

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with failing_in_one_line():
    folder = StageFolder(sys.argv[1], "generate")
    folder.begin({})
    if sys.argv[2] == "part":
        folder.write_part(0, [{"prompt_id": str(i) * 7, "text": str(i * i) * 50} for i in range(1000)])
    elif sys.argv[2] == "json":
        write_json(folder.path / "report.json", ["x" * 10_000])
    else:
        MetricsLog(folder.workspace / "metrics.jsonl").write(1, text="x" * 10_000)
"""


@pytest.mark.parametrize("what", ["part", "json", "metrics"])
def test_a_file_that_gets_too_large_is_named(tmp_path: Path, what: str):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path, what], capture_output=True, text=True)
    names = {"part": "part-00000.parquet", "json": "report.json", "metrics": "metrics.jsonl"}
    assert done.returncode == 1 and done.stderr.startswith("prm-ray: error: ") and done.stderr.count("\n") == 1
    assert f"{names[what]}' cannot be written: File too large" in done.stderr


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    with memory_disk(tmp_path / "fixed", "ro") as folder:
        yield folder


def test_a_run_folder_that_cannot_be_written_to_is_bad_input(read_only: Path, capsys: pytest.CaptureFixture[str]):
    line = line_of(lambda: attempt_at(read_only / "run", "generate"), capsys, 2)
    assert "run.dir cannot be used: " in line and "responses' cannot be written: Read-only file system" in line


def test_a_run_folder_that_cannot_be_made_is_bad_input(capsys: pytest.CaptureFixture[str]):
    line = line_of(lambda: attempt_at(Path("/proc/no/such/run"), "generate"), capsys, 2)
    assert "run.dir cannot be used: '/proc/no/such/run/responses' cannot be made" in line


def test_a_run_folder_that_is_a_file_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run").touch()
    line = line_of(lambda: attempt_at(tmp_path / "run", "generate"), capsys, 2)
    assert f"run.dir must be a folder, and '{tmp_path / 'run'}" in line and "is a file" in line


def test_a_finished_run_is_read_from_a_disk_that_became_read_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = make_config(tmp_path)
    finish_by_hand(config)
    run_stage(config, "rerank")
    if subprocess.run(["mount", "--bind", tmp_path, tmp_path], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path], check=True)
        assert run_stage(config, "rerank")["rows_in"] == 2
        line = line_of(lambda: run_stage(config, "evaluate"), capsys, 2)
        assert "report' cannot be written: Read-only file system" in line
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_in_a_worker_of_ray_is_told_as_itself():
    text = "ray::Worker()\n  File 'x.py', line 3\nprm_ray.errors.StorageError: 'a/b' cannot be written: No space left\n"
    cause = known_cause(RuntimeError(text), Path("a"))
    assert type(cause) is StorageError and str(cause) == "'a/b' cannot be written: No space left"
    assert "'a/b' cannot be written: No space left on device" in str(known_cause(OSError(28, "No space"), Path("a/b")))
    assert known_cause(FileNotFoundError(2, "no such file", "a/b"), Path("a")) is None


@pytest.fixture
def scored(tmp_path: Path) -> RunConfig:
    config = make_config(tmp_path)
    mark_done(config, BEFORE_RERANK)
    for part in range(3):
        rows = [score_row(number, "right", 2.0) | {"prompt_id": f"p{part}"} for number in range(2)]
        StageFolder(config.run.dir, "score").write_part(part, rows)
    run_stage(config, "rerank")
    return config


def test_a_cut_off_part_is_named_and_only_it_is_made_again(scored: RunConfig, capsys: pytest.CaptureFixture[str]):
    folder = StageFolder(scored.run.dir, "rerank")
    kept = {index: folder.part_path(index).stat().st_mtime_ns for index in (0, 2)}
    expected = list(folder.rows())
    cut(folder.part_path(1))
    line = line_of(lambda: run_stage(scored, "evaluate"), capsys, 2)
    assert f"'{folder.part_path(1)}' is not a readable Parquet file" in line
    assert "; remove it and manifest.json beside it, and run its stage again" in line and ".;" not in line
    with pytest.raises(UserError, match=r"part-00001\.parquet' is not a readable"):
        count_parts(folder, ())
    folder.part_path(1).unlink()
    folder.manifest_path.unlink()
    run_stage(scored, "rerank")
    assert list(folder.rows()) == expected
    assert kept == {index: folder.part_path(index).stat().st_mtime_ns for index in kept}


def test_cut_off_weights_are_named(tiny_model: str, tmp_path: Path):
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", tiny_model, folder], check=True)
    cut(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model/model\.safetensors' is damaged \(.*make it again with --fresh"):
        load_model(str(folder))


def killed_training(run_dir: Path, step: int) -> StageFolder:
    """What an attempt leaves that was killed behind its checkpoint of this step."""
    import torch

    folder = attempt_at(run_dir, "train")
    checkpoint = folder.workspace / ".ray_train" / "fit" / f"checkpoint_{step}"
    checkpoint.mkdir(parents=True)
    write_shard(checkpoint, {"num_steps": torch.tensor(step), "0.master": torch.zeros(1000)}, 0, 1)
    record = f'{{"latest_checkpoint_result": {{"checkpoint_dir_name": "{checkpoint.name}"}}}}'
    (checkpoint.parent / "checkpoint_manager_snapshot.json").write_text(record)
    (folder.workspace / "metrics.jsonl").write_text("".join(f'{{"step": {n + 1}}}\n' for n in range(step + 2)))
    return folder


def test_a_new_attempt_takes_over_the_checkpoint_of_the_one_that_got_farthest(tmp_path: Path):
    older = killed_training(tmp_path, 8)
    newer = attempt_at(tmp_path, "train")
    state = takeover.taken_over(newer)
    assert state is not None and state.parent == newer.workspace and not older.workspace.exists()
    third = attempt_at(tmp_path, "train")  # the second was killed before it had a checkpoint of its own
    state = takeover.taken_over(third)
    assert state is not None and (state / "state-00000-of-00001.safetensors").stat().st_nlink == 1
    MetricsLog(third.workspace / "metrics.jsonl", 8)
    assert (third.workspace / "metrics.jsonl").read_text().splitlines()[-1] == '{"step": 8}'


def test_the_workspace_of_a_newer_attempt_is_left_alone_before_that_has_told_of_itself(tmp_path: Path):
    """It makes its workspace first; over NFS a listing may be old, so that its mark is seen half a minute later."""
    killed_training(tmp_path, 8)
    folder, newer = attempt_at(tmp_path, "train"), attempt_at(tmp_path, "train")
    assert newer.attempt is not None
    (newer.path / newer.attempt.file).unlink()
    assert takeover.taken_over(folder) is not None and newer.workspace.is_dir()


def test_a_cut_off_training_state_is_named_and_nothing_is_removed(tmp_path: Path):
    older = killed_training(tmp_path, 8)
    cut(older.workspace / ".ray_train" / "fit" / "checkpoint_8" / "state-00000-of-00001.safetensors")
    newer = attempt_at(tmp_path, "train")
    with pytest.raises(UserError, match=r"state-00000-of-00001\.safetensors' is damaged \(.*from the start: --fresh"):
        takeover.taken_over(newer)
    assert (older.workspace / ".ray_train" / "fit" / "checkpoint_8").is_dir()


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


def test_a_takeover_that_was_killed_while_it_copied_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    killed_training(tmp_path, 8)

    def die(*_: str) -> str:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(takeover, "_link_or_copy", die)
        takeover.taken_over(attempt_at(tmp_path, "train"))
    check_goes_on_at_8(tmp_path)


def test_a_takeover_that_was_killed_while_it_removed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    killed_training(tmp_path, 8)

    def remove_half(path: Path, **_: bool) -> None:
        for state in path.rglob("state-*"):
            state.unlink()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(takeover.shutil, "rmtree", remove_half)
        takeover.taken_over(attempt_at(tmp_path, "train"))
    check_goes_on_at_8(tmp_path)


def test_training_goes_on_if_ray_was_killed_while_it_recorded_a_checkpoint(tmp_path: Path):
    """Ray writes the record in place."""
    older = killed_training(tmp_path, 8)
    fit = older.workspace / ".ray_train" / "fit"
    cut(fit / "checkpoint_manager_snapshot.json")
    shutil.copytree(fit / "checkpoint_8", fit / "checkpoint_12")
    cut(fit / "checkpoint_12" / "state-00000-of-00001.safetensors")
    check_goes_on_at_8(tmp_path)


def check_goes_on_at_8(run_dir: Path) -> None:
    newer = attempt_at(run_dir, "train")
    state = takeover.taken_over(newer)
    assert state is not None
    with StoredState(state) as stored:
        assert int(stored.scalar("num_steps")) == 8
    assert (newer.workspace / "metrics.jsonl").read_text().count("\n") == 10
    assert [path.name for path in newer.path.glob("attempt-*")] == [newer.workspace.name]


def test_training_begun_by_an_earlier_version_goes_on(tmp_path: Path):
    older = killed_training(tmp_path, 4)
    for name in (".ray_train", "metrics.jsonl"):
        (older.workspace / name).rename(older.path / name)
    older.workspace.rmdir()
    newer = attempt_at(tmp_path, "train")
    assert takeover.taken_over(newer) is not None and not (newer.path / ".ray_train").exists()
    assert (newer.workspace / "metrics.jsonl").is_file()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_part_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
):
    """Nobody must be told to remove a sound part because a disk or a file server had an error."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "part-00000.parquet"
    write_parquet(path, pa.table({"a": [1]}))
    monkeypatch.setattr("prm_ray.parquetfiles.pq.read_table", fail)
    with pytest.raises(StorageError, match=r"part-00000\.parquet' cannot be read: ") as caught:
        read_parquet(path)
    assert "remove" not in str(caught.value)
