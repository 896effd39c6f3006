"""Stages on Ray whose tables lie in an S3 bucket: what their workers write there is what they write on a disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prm_ray.config import RunConfig
from prm_ray.objectstore import file_system
from prm_ray.tables import StageFolder
from tests.s3 import new_bucket, s3_server
from tests.tables_by_hand import tiny_config

pytest.importorskip("moto")
pytest.importorskip("s3fs")

STAGES = """
import sys
from prm_ray.config import load_config
from prm_ray.stages.pipeline import run_stage

for path in sys.argv[1:]:
    for stage in ("import", "reference"):
        run_stage(load_config(path), stage)
"""


def config_at(tmp_path: Path, run_dir: Path, model: str) -> Path:
    source = tmp_path / "responses.jsonl"
    rows = [
        {"problem": f"{number} + 1", "text": f"{number}\n+1", "correct": number % 2 == 0, "split": split}
        for split, numbers in (("train", range(80)), ("test", range(80, 90)))
        for number in numbers
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(run_dir, model, **{"import": {"source": str(source)}})
    path = tmp_path / f"{run_dir.name}.json"
    path.write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    return path


def test_workers_write_to_a_bucket_what_they_write_to_a_disk(tmp_path: Path, tiny_model: str):
    with s3_server() as environment:
        there, here = new_bucket() / "runs" / "there", tmp_path / "here"
        paths = [config_at(tmp_path, run_dir, tiny_model) for run_dir in (there, here)]
        command = [sys.executable, "-c", STAGES, *map(str, paths)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        tables = [list(StageFolder(run_dir, "reference").rows()) for run_dir in (there, here)]
        assert tables[0] == tables[1] and len(tables[0]) == 90 and all(row["ref_logprobs"] for row in tables[0])
        assert StageFolder(there, "reference").manifest()["rows_out"] == 90
        fs, root = file_system(there)
        assert not [name for name in fs.find(root) if "/attempt-" in name or name.endswith(".tmp")]
        assert RunConfig.model_validate(json.loads(paths[0].read_text())).run.dir == there
