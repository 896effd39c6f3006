"""SIGKILL in the middle of generate: what is finished stays, nothing is doubled, no engine is left behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prm_ray.tables import StageFolder

NUM_PROBLEMS, NUM_SAMPLES, NUM_SHARDS = 36, 4, 18
DRIVER = """
import sys
from prm_ray.config import load_config
from prm_ray.runlog import set_up_logging
from prm_ray.stages import generate
from prm_ray.stages.cluster import start_ray
from prm_ray.tables import StageFolder

set_up_logging()
config = load_config(sys.argv[1])
folder = StageFolder(config.run.dir, "generate")
start_ray(config)
folder.begin(config.identity("generate"))
folder.finish({"rows": generate.run(config, folder).rows_out})
"""
CONFIG = """
[run]
dir = "{folder}"
[model]
name = "{model}"
[prompt]
max_tokens = 64
[problems]
num_train = 30
num_test = 6
[generate]
backend = "vllm"
num_samples = 4
max_tokens = 32
problems_per_shard = 2
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """An environment variable's value by which every process of the test can be told from all others."""
    mark = uuid.uuid4().hex
    yield mark
    for process in processes(mark):
        process.kill()


def processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PRM_RAY_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def start(config: Path, mark: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PRM_RAY_TEST_MARK": mark}
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(config)], env=environment)


def wait_until(condition, seconds: float, what: str) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"no {what} within {seconds:g} s"
        time.sleep(0.05)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, demo_model: Path, mark: str):
    pytest.importorskip("vllm")
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.format(folder=tmp_path / "run", model=demo_model))
    folder = StageFolder(tmp_path / "run", "generate")
    driver = start(config, mark)
    wait_until(lambda: folder.finished_parts() or driver.poll() is not None, 400, "part")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not processes(mark), 180, "end of the killed run's processes")
    parts = {index: folder.part_path(index).stat().st_mtime_ns for index in folder.finished_parts()}
    assert 1 <= len(parts) < NUM_SHARDS and not folder.is_done()

    assert start(config, mark).wait(timeout=500) == 0
    assert folder.is_done() and folder.finished_parts() == list(range(NUM_SHARDS))
    assert parts == {index: folder.part_path(index).stat().st_mtime_ns for index in parts}
    keys = [(row["prompt_id"], row["sample_index"]) for row in folder.rows(["prompt_id", "sample_index"])]
    assert len(keys) == len(set(keys)) == NUM_PROBLEMS * NUM_SAMPLES
    wait_until(lambda: not processes(mark), 60, "end of the finished run's processes")
