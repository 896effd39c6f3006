"""SIGKILL of the driver in the middle of reference and of train; the same command goes on and loses nothing."""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prm_ray.tables import StageFolder
from tests.processes import kill_when, wait_until
from tests.tables_by_hand import finish_up_to_training, tiny_config, write_reference_table

NUM_STEPS = 35
"""With a checkpoint every four, each of which waits a second or two for Ray to have the one before on record."""
DRIVER = """
import sys, pickle
config, stage = pickle.load(open(sys.argv[1], "rb"))
from prm_ray.stages.cluster import start_ray
from prm_ray.tables import StageFolder
start_ray(config)
module = __import__(f"prm_ray.stages.{stage}", fromlist=["run"])
folder = StageFolder(config.run.dir, stage)
folder.begin({})
module.run(config, folder)
folder.finish({})
"""


def start_driver(tmp_path: Path, config, stage: str) -> subprocess.Popen:
    import pickle

    arguments = tmp_path / "arguments.pickle"
    arguments.write_bytes(pickle.dumps((config, stage)))
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(arguments)])


def read_metrics(folder: StageFolder) -> list[dict]:
    """Of the attempt that has got farthest."""
    found = []
    for path in [*folder.path.glob("attempt-*/metrics.jsonl"), *folder.path.glob("metrics.jsonl")]:
        with suppress(FileNotFoundError):  # a newer attempt removes an older one's
            lines = path.read_text().splitlines(keepends=True)
            found.append([json.loads(line) for line in lines if line.endswith("\n")])
    return max(found, key=len, default=[])


def losses(folder: StageFolder) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder)]


@pytest.fixture
def config(tiny_model: str, tmp_path: Path):
    return tiny_config(tmp_path / "run", tiny_model)


@pytest.mark.parametrize("values", [{}, {"parallel": "fsdp", "num_workers": 2}], ids=["one worker", "two shards"])
def test_training_goes_on_from_its_checkpoint_with_the_same_losses(
    values: dict[str, Any], tmp_path: Path, tiny_model: str
) -> None:
    settings = {"epochs": NUM_STEPS // 5, "checkpoint_every": 4, "validation_fraction": 0.0, **values}
    config = tiny_config(tmp_path / "run", tiny_model, train=settings)
    write_reference_table(config)
    folder = StageFolder(config.run.dir, "train")
    kill_when(start_driver(tmp_path, config, "train"), lambda: len(losses(folder)) >= 14)
    before = losses(folder)
    assert len(before) < NUM_STEPS, "the run was over before it was killed"
    assert start_driver(tmp_path, config, "train").wait() == 0
    whole = tiny_config(tmp_path / "whole", tiny_model, train=config.train.model_dump())
    write_reference_table(whole)
    assert start_driver(tmp_path, whole, "train").wait() == 0
    assert losses(folder) == losses(StageFolder(whole.run.dir, "train"))
    resumed_at = next(line["time"] for line in read_metrics(folder) if line["step"] > before[-1][0])
    kept = [line for line in read_metrics(folder) if line["time"] < resumed_at - 5]
    assert len(kept) >= 8, "the second start did not go on from the last checkpoint but one, or a newer one"


def test_ctrl_c_in_training_is_told_and_no_success(tmp_path: Path, tiny_model: str) -> None:
    settings = {"epochs": 12, "checkpoint_every": 4, "validation_fraction": 0.0}
    config = tiny_config(tmp_path / "run", tiny_model, train=settings)
    finish_up_to_training(config)
    (tmp_path / "run.json").write_text(config.model_dump_json(by_alias=True))
    command = [sys.executable, "-m", "prm_ray", "train", str(tmp_path / "run.json")]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = StageFolder(config.run.dir, "train")
    wait_until(lambda: len(losses(folder)) >= 6 or driver.poll() is not None, 400, "sixth step")
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 130, said[-3000:]
    assert said.splitlines()[-1].startswith("prm-ray: error: interrupted; what is finished is kept")
    assert 6 <= len(losses(folder)) < 60 and not folder.is_done()


def test_reference_keeps_finished_parts_and_doubles_nothing(config, tmp_path: Path) -> None:
    write_labels(config, num_parts=40)
    folder = StageFolder(config.run.dir, "reference")
    kill_when(start_driver(tmp_path, config, "reference"), lambda: len(folder.finished_parts()) >= 3)
    kept = {index: folder.part_path(index).stat().st_mtime_ns for index in folder.finished_parts()}
    assert len(kept) < 40, "the stage was over before it was killed"
    assert start_driver(tmp_path, config, "reference").wait() == 0
    assert {index: folder.part_path(index).stat().st_mtime_ns for index in kept} == kept
    rows = [(row["prompt_id"], row["sample_index"]) for row in folder.rows(["prompt_id", "sample_index"])]
    assert len(set(rows)) == len(rows) == 40 * 8


def write_labels(config, num_parts: int) -> None:
    """Labels with texts from elsewhere, so that reference has to encode them too."""
    folder = StageFolder(config.run.dir, "label")
    folder.path.mkdir(parents=True)
    for part in range(num_parts):
        row = {"split": "train", "correct": True, "messages": [{"role": "user", "content": f"{part}"}]}
        texts = [f"{part}+{sample}\nx" * 20 for sample in range(8)]
        rows = [row | {"prompt_id": f"p{part}", "sample_index": s, "text": text} for s, text in enumerate(texts)]
        folder.write_part(part, rows)
