"""What a worker sees of the GPUs of its machine. Ray is told of some that are not there: it only counts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAM = """
import os, sys
from contextlib import suppress
from pathlib import Path
import ray
from prm_ray.config import RunConfig
from prm_ray.errors import TakenOverError
from prm_ray.stages.gpus import keep_to_own_gpus
from prm_ray.stages.fit import FitPlan, fit
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.tables import StageFolder

def seen():
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all")

class Worker:
    def __init__(self, folder):
        self._folder, self._seen = folder, seen()

    def __call__(self, shard):
        self._folder.write_part(shard, [{"prompt_id": self._seen}])
        return ShardStats(1)

class Actor:
    def __init__(self):
        keep_to_own_gpus()

    def seen(self):
        return seen()

def data_of_training(note):
    Path(note).write_text(seen())
    raise TakenOverError("no more of it")

def new_folder(name, stage):
    folder = StageFolder(Path(sys.argv[1]) / name, stage)
    folder.begin({})
    return folder

ray.init(address="local", num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False)
for num_gpus in (0.0, 2.0, None):
    folder = new_folder(f"of-{num_gpus}", "generate")
    map_shards(folder, 1, Worker, {"folder": folder}, name="generate", num_workers=1, num_gpus=num_gpus)
    print("shards:", folder.read_part(0)[0]["prompt_id"])
actor = ray.remote(Actor)
for num_gpus in (0, 0.5):
    print("actor:", ray.get(actor.options(num_gpus=num_gpus).remote().seen.remote()))
config = RunConfig.model_validate({"train": {"gpus_per_worker": 0}})
note = str(Path(sys.argv[1]) / "note")
folder = new_folder("trained", "train")
plan = FitPlan("train", folder, "nowhere", config, config.train, 0, lambda: data_of_training(note))
with suppress(Exception):
    fit(plan, 1)
print("training:", Path(note).read_text())
"""


def test_a_worker_sees_the_gpus_it_asked_for_and_no_others(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=480)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("shards", "actor", "training"))]
    assert [line.partition(": ")[2].count(",") for line in lines] == [0, 1, 0, 0, 0, 0], ended.stdout + ended.stderr
    assert [line.endswith(": ") for line in lines] == [True, False, False, True, False, True], ended.stdout
