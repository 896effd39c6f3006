"""A disk that fills up while a stage works on it: one line, and the same command goes on once there is room."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prm_ray.config import RunConfig
from prm_ray.tables import StageFolder
from tests.chaos.test_kill_train import losses
from tests.disks import memory_disk
from tests.processes import wait_until
from tests.tables_by_hand import finish_up_to_training, tiny_config

NUM_STEPS = 25
TRAINING = {
    "epochs": NUM_STEPS // 5,
    "checkpoint_every": 4,
    "validation_fraction": 0.0,
    "parallel": "fsdp",
    "num_workers": 2,
}
LEFT_BYTES = 100_000
"""Enough for lines of metrics, a quarter of a checkpoint."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with memory_disk(tmp_path / "disk", "size=8m") as folder:
        yield folder


def fill(disk: Path, filler: Path) -> None:
    """But for `LEFT_BYTES`, whoever else writes there meanwhile."""

    def room() -> int:
        found = os.statvfs(disk)
        return found.f_bavail * found.f_frsize - LEFT_BYTES

    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while (left := room()) > 0:
            file.write(bytes(min(left, 50_000)))


def begin(config: RunConfig, path: Path, **environment: str) -> subprocess.Popen[str]:
    path.write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    command = [sys.executable, "-m", "jobs.train", str(path)]
    own = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=own)


def test_training_that_cannot_store_a_checkpoint_says_so_and_goes_on_with_the_same_losses(
    disk: Path, tmp_path: Path, tiny_model: str
):
    config = tiny_config(disk / "run", tiny_model, train=TRAINING)
    finish_up_to_training(config)
    folder, filler = StageFolder(config.run.dir, "train"), disk / "filler"
    run = begin(config, tmp_path / "run.json")
    wait_until(lambda: len(losses(folder)) >= 6 or run.poll() is not None, 400, "sixth step")
    fill(disk, filler)
    _, said = run.communicate(timeout=2400)
    assert run.returncode == 1, said[-5000:]
    last = said.splitlines()[-1]
    assert last.startswith("prm-ray: error: ") and "cannot be written: No space left on device; make room there" in last
    before = len(losses(folder))
    assert 6 <= before < NUM_STEPS, "the run was over before the disk was full"
    filler.unlink()
    run = begin(config, tmp_path / "run.json")
    _, said = run.communicate(timeout=2400)
    assert run.returncode == 0, said[-5000:]
    whole = tiny_config(tmp_path / "whole", tiny_model, train=TRAINING)
    finish_up_to_training(whole)
    assert begin(whole, tmp_path / "whole.json").wait(2400) == 0
    assert losses(folder) == losses(StageFolder(whole.run.dir, "train"))


def test_training_on_a_machine_whose_own_disk_has_no_room_for_a_checkpoint_says_so(tmp_path: Path, tiny_model: str):
    """Each worker writes its share there first, as a safetensors file."""
    config = tiny_config(tmp_path / "run", tiny_model, train=TRAINING)
    finish_up_to_training(config)
    with memory_disk(tmp_path / "own", f"size={LEFT_BYTES}") as own:
        run = begin(config, tmp_path / "run.json", TMPDIR=str(own), RAY_TMPDIR="/tmp")
        _, said = run.communicate(timeout=2400)
    assert run.returncode == 1, said[-5000:]
    last = said.splitlines()[-1]
    assert last.startswith(f"prm-ray: error: '{own}") and "cannot be written: No space left on device" in last
