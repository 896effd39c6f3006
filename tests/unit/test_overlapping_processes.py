"""Attempts at one stage that overlap, as two real processes."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prm_ray.config import RunConfig
from prm_ray.stages.pipeline import run_stage
from prm_ray.tables import StageFolder
from tests.processes import wait_until
from tests.tables_by_hand import mark_done
from tests.unit.test_pipeline import BEFORE_RERANK, make_config, score_row

RERANK = """
import sys, time
from pathlib import Path
from prm_ray.config import load_config
from prm_ray.entry import failing_in_one_line
from prm_ray.runlog import set_up_logging
from prm_ray.stages import pipeline, rerank
from prm_ray.tables import StageFolder

seconds, ready, go = float(sys.argv[2]), *map(Path, sys.argv[3:])
config = load_config(sys.argv[1])
read_problems = rerank.read_problems

def slowly(*words):
    time.sleep(seconds)
    return read_problems(*words)

rerank.read_problems = slowly
set_up_logging()
ready.touch()
while not go.exists():
    time.sleep(0.001)
with failing_in_one_line():
    pipeline.run_stage(config, "rerank")
"""


@pytest.fixture
def scored(tmp_path: Path) -> RunConfig:
    config = make_config(tmp_path)
    mark_done(config, BEFORE_RERANK)
    scores = StageFolder(config.run.dir, "score")
    for part in range(30):
        rows = [score_row(0, "right", 2.0), score_row(1, "wrong", 1.0)]
        scored = {"prompt_id": f"p{part}", "text": "2", "step_rewards": [1.0], "token_rewards": [1.0]}
        scores.write_part(part, [row | scored for row in rows])
    return config


def start(tmp_path: Path, *seconds: float) -> list[subprocess.Popen[str]]:
    """Processes that rerank, each as many seconds a part as said, and all begin at once."""
    marks = [tmp_path / f"ready-{number}" for number in range(len(seconds))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RERANK, tmp_path / "run.toml", str(pause), mark, tmp_path / "go"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for pause, mark in zip(seconds, marks, strict=True)
    ]
    wait_until(lambda: all(mark.exists() for mark in marks), 600, "process")
    (tmp_path / "go").touch()
    return processes


def test_two_processes_at_one_stage_make_one_table_that_the_next_stage_takes(scored: RunConfig, tmp_path: Path):
    processes = start(tmp_path, 0.1, 0.15)
    assert [process.wait(timeout=600) for process in processes] == [0, 0], [process.stderr for process in processes]
    folder = StageFolder(scored.run.dir, "rerank")
    keys = [(row["prompt_id"], row["method"], row["n"]) for row in folder.rows()]
    assert len(keys) == len(set(keys)) == folder.manifest()["rows_out"] and len({key[0] for key in keys}) == 30
    assert len(list((folder.path / "attempts").iterdir())) == 2, "they did not overlap"
    assert not list(folder.path.glob("attempt-*")) and not list(folder.path.glob(".*"))
    assert run_stage(scored, "evaluate")["rows_in"] == 60


def test_a_process_whose_folder_is_cleared_ends_with_one_line(scored: RunConfig, tmp_path: Path):
    (older,) = start(tmp_path, 2.0)
    folder = StageFolder(scored.run.dir, "rerank")
    wait_until(folder.finished_parts, 600, "part")
    older.send_signal(signal.SIGSTOP)  # else it may look between the two, and cannot say who has begun anew
    try:
        folder.clear()
        newer = run_stage(scored, "rerank")
    finally:
        older.send_signal(signal.SIGCONT)
    parts = {index: folder.part_path(index).stat().st_mtime_ns for index in folder.finished_parts()}
    assert older.wait(timeout=600) == 1
    assert older.stderr is not None
    last = older.stderr.read().splitlines()[-1]
    assert last.startswith("prm-ray: error: ")
    assert re.search(r"was removed \(--fresh\), and attempt \d+ \(process \d+ on .* has begun it anew", last)
    assert newer == folder.manifest() and list(parts) == list(range(30))
    assert parts == {index: folder.part_path(index).stat().st_mtime_ns for index in folder.finished_parts()}
