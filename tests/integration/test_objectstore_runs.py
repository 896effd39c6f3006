"""A run on Ray that lies in an S3 bucket, its models too: what it makes there is what it makes on a disk."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.metricslog import METRICS_FILE
from prm_ray.objectstore import file_system
from prm_ray.tables import FOLDERS, StageFolder
from tests.processes import kill_when
from tests.s3 import names_in
from tests.tables_by_hand import tiny_config

RUN = """
import sys
from prm_ray.config import load_config
from prm_ray.runlog import set_up_logging
from prm_ray.stages.pipeline import run_all
set_up_logging()
run_all(load_config(sys.argv[1]))
"""
TRAINING = {"epochs": 8, "checkpoint_every": 4, "num_workers": 2, "parallel": "fsdp"}
WARMUP = {"enabled": True, "num_problems": 16, "batch_size": 8, "lr": 1e-3}


def begin(tmp_path: Path, run_dir: Path, model: str) -> tuple[RunConfig, subprocess.Popen[bytes]]:
    """The config, and the command that runs all of it; what it says goes to `said.log`."""
    config = tiny_config(run_dir, model, train=TRAINING, warmup=WARMUP)
    path = tmp_path / f"{run_dir.name}.json"
    path.write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    environment = os.environ | {"PRM_RAY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", RUN, str(path)]
    with (tmp_path / "said.log").open("wb") as log:
        return config, subprocess.Popen(command, env=environment, stderr=log)


def end(run: subprocess.Popen[bytes], tmp_path: Path) -> str:
    run.wait(timeout=2400)
    said = (tmp_path / "said.log").read_text()
    assert run.returncode == 0, said[-5000:]
    return said


def steps_in(folder: StageFolder) -> int:
    """Of the attempt that has got farthest, as far as the bucket shows it."""
    fs, root = file_system(folder.path)
    return max((fs.cat_file(name).count(b"\n") for name in fs.glob(f"{root}/attempt-*/{METRICS_FILE}")), default=0)


def curve(config: RunConfig, stage: str) -> list[tuple[int, float, float]]:
    text = (StageFolder(config.run.dir, stage).path / METRICS_FILE).read_text()
    return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, text.splitlines())]


def table(config: RunConfig, stage: str) -> list[dict[str, Any]]:
    """But for whose sampler it was: the models lie at two places."""
    return [row | {"generator": None} for row in StageFolder(config.run.dir, stage).rows()]


def test_a_run_in_a_bucket_that_is_killed_in_training_makes_what_one_on_a_disk_does(
    tmp_path: Path, tiny_model: str, bucket: Path
):
    fs, root = file_system(bucket / "model")
    fs.put(tiny_model, root, recursive=True)
    there, run = begin(tmp_path, bucket / "runs" / "there", str(bucket / "model"))
    training = StageFolder(there.run.dir, "train")
    kill_when(run, lambda: steps_in(training) >= 8, seconds=2400)
    assert not training.is_done(), "training was over before it was killed"
    said = end(begin(tmp_path, bucket / "runs" / "there", str(bucket / "model"))[1], tmp_path)
    assert "train     goes on in s3://" in said
    here, run = begin(tmp_path, tmp_path / "here", tiny_model)
    end(run, tmp_path)
    for stage in ("warmup", "train"):
        assert curve(there, stage) == curve(here, stage)
    assert len(curve(there, "train")) > 20
    for stage in ("generate", "label", "reference", "score", "rerank"):
        assert table(there, stage) == table(here, stage), stage
    facts = [json.loads((each.run.dir / "checkpoint" / "prm.json").read_text()) for each in (there, here)]
    assert facts[0] == facts[1] and facts[0]["reference"] == "../warmup"
    files = names_in(there.run.dir)
    assert f"{FOLDERS['train']}/model.safetensors" in files
    assert not [name for name in files if "/attempt-" in name or "/." in name or name.endswith(".tmp")]
