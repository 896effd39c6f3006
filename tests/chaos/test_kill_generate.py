"""SIGKILL in the middle of generate: what is finished stays, nothing is doubled, no engine is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prm_ray.tables import StageFolder
from tests.processes import MARK, wait_for_end, wait_until

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


def start(config: Path, mark: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {MARK: mark}
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(config)], env=environment)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, demo_model: Path, mark: str):
    pytest.importorskip("vllm")
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.format(folder=tmp_path / "run", model=demo_model))
    folder = StageFolder(tmp_path / "run", "generate")
    driver = start(config, mark)
    wait_until(lambda: folder.finished_parts() or driver.poll() is not None, 800, "part")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for_end(mark, 360)
    parts = {index: folder.part_path(index).stat().st_mtime_ns for index in folder.finished_parts()}
    assert 1 <= len(parts) < NUM_SHARDS and not folder.is_done()

    assert start(config, mark).wait(timeout=1000) == 0
    assert folder.is_done() and folder.finished_parts() == list(range(NUM_SHARDS))
    assert parts == {index: folder.part_path(index).stat().st_mtime_ns for index in parts}
    keys = [(row["prompt_id"], row["sample_index"]) for row in folder.rows(["prompt_id", "sample_index"])]
    assert len(keys) == len(set(keys)) == NUM_PROBLEMS * NUM_SAMPLES
    wait_for_end(mark, 120)
