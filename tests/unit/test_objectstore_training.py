"""What a training run keeps in an S3 bucket: its metrics, and what the next attempt takes over."""

import json
import logging
import threading
from pathlib import Path

import pytest

from prm_ray import objectstore
from prm_ray.errors import StorageError, TakenOverError, UserError
from prm_ray.metricslog import METRICS_FILE, MetricsLog, follow_metrics
from prm_ray.objectstore import ObjectFolder
from prm_ray.stages import objecttakeover
from prm_ray.stages.takeover import RUN_NAME, STORAGE, TAKEN, taken_over
from prm_ray.tables import StageFolder
from tests.s3 import names_in
from tests.unit.test_attempts import attempt_at


def killed_training(run_dir: Path, step: int) -> StageFolder:
    """What an attempt leaves that was killed behind its checkpoint of this step."""
    folder = attempt_at(run_dir, "train")
    fit = folder.shared_workspace / STORAGE / RUN_NAME
    for number in range(2):
        (fit / f"checkpoint_{step}" / f"state-{number:05d}-of-00002.safetensors").write_bytes(b"%d" % step)
    latest = {"checkpoint_dir_name": f"checkpoint_{step}", "metrics": {"loss": 0.5, "step": step}}
    (fit / "checkpoint_manager_snapshot.json").write_text(json.dumps({"latest_checkpoint_result": latest}))
    lines = [json.dumps({"step": number + 1}) + "\n" for number in range(step + 2)]
    (folder.shared_workspace / METRICS_FILE).write_text("".join(lines))
    return folder


def test_a_new_attempt_takes_over_the_checkpoint_of_the_one_that_got_farthest(bucket: Path):
    older = killed_training(bucket / "run", 8)
    newer = attempt_at(bucket / "run", "train")
    state = taken_over(newer)
    assert state == newer.shared_workspace / TAKEN and not names_in(older.shared_workspace)
    third = attempt_at(bucket / "run", "train")  # the second was killed before it had a checkpoint of its own
    state = taken_over(third)
    assert state is not None and {(state / f"state-0000{n}-of-00002.safetensors").read_bytes() for n in (0, 1)} == {
        b"8"
    }
    MetricsLog(third.shared_workspace / METRICS_FILE, 8)
    assert (third.shared_workspace / METRICS_FILE).read_text().splitlines()[-1] == '{"step": 8}'
    with pytest.raises(TakenOverError):
        older.check()


def test_of_several_the_farthest_is_taken(bucket: Path):
    killed_training(bucket / "run", 12)
    killed_training(bucket / "run", 4)
    state = taken_over(attempt_at(bucket / "run", "train"))
    assert state is not None and (state / "state-00000-of-00002.safetensors").read_bytes() == b"12"


def test_a_first_attempt_takes_over_nothing(bucket: Path):
    assert taken_over(attempt_at(bucket / "run", "train")) is None
    attempt_at(bucket / "other", "train")
    assert taken_over(attempt_at(bucket / "other", "train")) is None


def test_a_takeover_that_was_killed_half_way_is_done_again(bucket: Path, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        pass

    def copy_half(source: Path, target: Path) -> None:
        (target / "state-00000-of-00002.safetensors").write_bytes(b"half")
        raise Killed

    killed_training(bucket / "run", 8)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(objecttakeover, "copy_tree", copy_half)
        taken_over(attempt_at(bucket / "run", "train"))
    newer = attempt_at(bucket / "run", "train")
    state = taken_over(newer)
    assert state is not None and (state / "state-00000-of-00002.safetensors").read_bytes() == b"8"
    assert {name.split("/")[0] for name in names_in(newer.path) if name.startswith("attempt-")} == {
        newer.shared_workspace.name
    }


def test_a_checkpoint_that_goes_while_it_is_copied_makes_way_for_the_next(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
):
    older = killed_training(bucket / "run", 8)

    def copy_as_the_next_is_stored(source: Path, target: Path) -> None:
        monkeypatch.setattr(objecttakeover, "copy_tree", objectstore.copy_tree)
        fit = older.shared_workspace / STORAGE / RUN_NAME
        (fit / "checkpoint_10" / "state-00000-of-00001.safetensors").write_bytes(b"10")
        latest = {"checkpoint_dir_name": "checkpoint_10", "metrics": {"loss": 0.5, "step": 10}}
        (fit / "checkpoint_manager_snapshot.json").write_text(json.dumps({"latest_checkpoint_result": latest}))
        raise FileNotFoundError(source)

    monkeypatch.setattr(objecttakeover, "copy_tree", copy_as_the_next_is_stored)
    state = taken_over(attempt_at(bucket / "run", "train"))
    assert state is not None and (state / "state-00000-of-00001.safetensors").read_bytes() == b"10"


@pytest.mark.parametrize("gone", ["checkpoint_8", "checkpoint_8/state-00001-of-00002.safetensors"])
def test_a_record_of_what_is_gone_is_no_checkpoint(bucket: Path, gone: str):
    """A store tells of nothing that is missing: what is copied must be looked at, before all else is removed."""
    killed_training(bucket / "run", 4)
    late = killed_training(bucket / "run", 8)
    fs, root = objectstore.file_system(late.shared_workspace / STORAGE / RUN_NAME / gone)
    fs.rm(root, recursive=True)
    state = taken_over(attempt_at(bucket / "run", "train"))
    assert state is not None and (state / "state-00001-of-00002.safetensors").read_bytes() == b"4"


def test_checkpoints_that_keep_going_are_told_in_one_line(bucket: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(source: Path, target: Path) -> None:
        raise FileNotFoundError(source)

    older = killed_training(bucket / "run", 8)
    monkeypatch.setattr(objecttakeover, "copy_tree", gone)
    with pytest.raises(UserError, match=r"checkpoints in 's3://.*' come and go"):
        taken_over(attempt_at(bucket / "run", "train"))
    assert names_in(older.shared_workspace), "nothing is removed that was not taken"


def test_a_store_that_is_out_of_reach_is_said_once_and_followed_on(bucket: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prm_ray.metricslog._PUT_SECONDS", 0.01)
    said = list[str]()
    monkeypatch.setattr(logging.getLogger("prm_ray"), "warning", lambda text, *words: said.append(text % words))
    path, finished, read = bucket / "run" / METRICS_FILE, threading.Event(), ObjectFolder.read
    answers = iter([False, False, True])

    def sometimes(folder: ObjectFolder, name: str) -> bytes | None:
        if next(answers, True):
            return read(folder, name)
        raise StorageError("'s3://x' cannot be read: refused")

    path.write_text('{"step": 1}\n')
    monkeypatch.setattr(ObjectFolder, "read", sometimes)
    for line in follow_metrics(path, finished):
        assert line == {"step": 1}
        finished.set()
    assert said == ["'s3://x' cannot be read: refused; training waits until it answers"]


def test_metrics_are_there_after_a_flush_and_are_followed(bucket: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prm_ray.metricslog._PUT_SECONDS", 0.2)
    path, finished, seen = bucket / "run" / METRICS_FILE, threading.Event(), []
    follower = threading.Thread(target=lambda: seen.extend(follow_metrics(path, finished)))
    follower.start()
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write(step, loss=0.5)
    log.flush()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    log = MetricsLog(path, resume_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    log.write(3, loss=0.25)
    log.flush()
    finished.set()
    follower.join(timeout=60)
    assert seen[-1]["step"] == 3 and seen[-1]["loss"] == 0.25
    assert ObjectFolder(bucket / "run").names() == [METRICS_FILE]
