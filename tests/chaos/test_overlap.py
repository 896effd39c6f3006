"""Two processes at one stage with Ray: a table stage is shared, training is taken over and loses nothing by it."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from prm_ray.config import RunConfig
from prm_ray.tables import StageFolder
from tests.chaos.test_kill_train import read_metrics
from tests.processes import MARK, command_line, marked, wait_until
from tests.tables_by_hand import finish_up_to_training, mark_done, tiny_config

ROOT = Path(__file__).resolve().parents[2]
NUM_PARTS, NUM_STEPS = 60, 40
SLOW_JUDGE = """
import itertools, time
from pathlib import Path
from tests.judges import even_length

RUN, judged = Path(__file__).parent / "run", itertools.count()

def slowly(text, gold):
    while next(judged) >= 8 and len(list(RUN.glob("labels/attempts/*.json"))) < 2:
        time.sleep(0.1)  # the newer attempt is to come while there is something left
    time.sleep(0.1)
    return even_length(text, gold)
"""


def start(config: RunConfig, stage: str, mark: str, log: Path) -> subprocess.Popen[bytes]:
    path = log.with_suffix(".json")
    path.write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    command = [sys.executable, "-m", "prm_ray.cli", stage, str(path)]
    known = [each for each in [os.environ.get("PYTHONPATH"), str(ROOT), str(log.parent)] if each]
    python_path = os.pathsep.join(known)  # in the last one lies a test's own judge
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=os.environ | {MARK: mark, "PYTHONPATH": python_path}, stdout=file, stderr=file
        )


def to_train(run_dir: Path, model: str, **train: Any) -> RunConfig:
    settings = {"epochs": NUM_STEPS // 5, "checkpoint_every": 4, "validation_fraction": 0.0, **train}
    config = tiny_config(run_dir, model, train=settings)
    finish_up_to_training(config)
    return config


def train_workers(mark: str) -> list[psutil.Process]:
    return [process for process in marked(mark) if "RayTrainWorker" in command_line(process)]


def test_a_newer_attempt_at_training_goes_on_where_the_older_is_which_ends(
    tmp_path: Path, tiny_model: str, mark: str
) -> None:
    """The older one hangs, is given up for dead, and comes back while the newer one works."""
    config = to_train(tmp_path / "run", tiny_model)
    folder = StageFolder(config.run.dir, "train")
    older = start(config, "train", mark, tmp_path / "older.log")
    wait_until(lambda: len(read_metrics(folder)) >= 10 or older.poll() is not None, 480, "step of the older attempt")
    hanging = train_workers(mark)
    assert hanging, "nothing to hang"
    for process in hanging:
        process.suspend()
    num_before = len(read_metrics(folder))
    assert num_before < NUM_STEPS, "the older attempt was through before it hung"
    newer = start(config, "train", mark, tmp_path / "newer.log")
    wait_until(lambda: len(read_metrics(folder)) > num_before or newer.poll() is not None, 480, "step of the newer one")
    for process in hanging:
        process.resume()
    assert older.wait(timeout=480) == 1
    last = (tmp_path / "older.log").read_text().splitlines()[-1]
    assert re.match(rf"prm-ray: error: attempt \d+ \(process {newer.pid} on .* has taken over .*/checkpoint'", last)
    assert newer.wait(timeout=480) == 0, (tmp_path / "newer.log").read_text()[-3000:]
    steps = read_metrics(folder)
    assert folder.is_done() and not list(folder.path.glob("attempt-*"))

    whole = to_train(tmp_path / "whole", tiny_model)
    assert start(whole, "train", mark, tmp_path / "whole.log").wait(timeout=480) == 0
    expected = read_metrics(StageFolder(whole.run.dir, "train"))
    assert [(line["step"], line["loss"]) for line in steps] == [(line["step"], line["loss"]) for line in expected]
    takeover = json.loads(max((folder.path / "attempts").iterdir()).read_text())["started_at"]
    kept = [line for line in steps if line["time"] < datetime.fromisoformat(takeover).timestamp()]
    assert len(kept) >= 4, "the newer attempt did not go on from a checkpoint of the older one"


def test_two_processes_that_label_make_one_table(tmp_path: Path, tiny_model: str, mark: str) -> None:
    (tmp_path / "slow.py").write_text(SLOW_JUDGE)
    config = tiny_config(tmp_path / "run", tiny_model, label={"judge": "slow:slowly"})
    mark_done(config, ["generate"])
    responses = StageFolder(config.run.dir, "generate")
    for part in range(NUM_PARTS):
        row = {"prompt_id": f"p{part}", "split": "train", "gold_answer": "1"}
        responses.write_part(part, [row | {"sample_index": number, "text": "x" * number} for number in range(4)])
    folder = StageFolder(config.run.dir, "label")
    older = start(config, "label", mark, tmp_path / "older.log")
    wait_until(lambda: folder.finished_parts() or older.poll() is not None, 240, "part of the older attempt")
    newer = start(config, "label", mark, tmp_path / "newer.log")
    logs = [tmp_path / "older.log", tmp_path / "newer.log"]
    assert [each.wait(timeout=480) for each in (older, newer)] == [0, 0], [log.read_text()[-2000:] for log in logs]
    assert len(list((folder.path / "attempts").iterdir())) == 2, "they did not overlap"
    keys = [(row["prompt_id"], row["sample_index"]) for row in folder.rows(["prompt_id", "sample_index"])]
    assert len(keys) == len(set(keys)) == folder.manifest()["rows_out"] == 4 * NUM_PARTS
    assert not list(folder.path.glob("attempt-*")) and not list(folder.path.glob(".*"))
