"""`processbench` on Ray with a tiny random model: real rows where they are there, and what a second start does."""

import json
from pathlib import Path

import pytest

from prm_ray.config import RunConfig
from prm_ray.models import write_prm_json
from prm_ray.stages import pipeline
from prm_ray.tables import StageFolder
from tests.tables_by_hand import mark_done, tiny_config
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("ray_local")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "processbench"
UP_TO_TRAIN = ("generate", "label", "reference", "train")


def trained(folder: Path, **section: object) -> RunConfig:
    """A run whose checkpoint is a tiny random model, scored without a reference."""
    checkpoint = folder / "run" / "checkpoint"
    save_tiny_model(checkpoint, context=8192)
    write_prm_json(checkpoint, {"objective": "ce", "beta": 1.0, "with_reference": False, "step_rule": "blank_line"})
    config = tiny_config(folder / "run", "unused", score={"with_reference": False}, processbench=section)
    mark_done(config, UP_TO_TRAIN)
    return config


def test_a_random_model_is_no_better_than_chance_on_real_solutions(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ProcessBench's rows")
    config = trained(tmp_path, source=str(SHARED), subsets=["gsm8k", "math"], num_rows=100)
    manifest = pipeline.run_stage(config, "processbench")
    assert (manifest["rows_in"], manifest["rows_out"], manifest["failed"]) == (200, 200, {})
    report = json.loads((tmp_path / "run" / "processbench" / "report.json").read_text())
    chance = report["baselines"]["random scores"]["mean_f1_of_others"]
    for figures in report["protocols"].values():
        assert figures["mean_f1_of_others"]["low"] < chance + 0.05
        assert figures["subsets"]["math"]["oracle_threshold"]["f1"] >= figures["subsets"]["math"]["f1"]["value"]


def test_a_killed_start_goes_on_with_the_rows_that_are_missing(tmp_path: Path) -> None:
    steps = ["1 + 2 = 3", "", "3 + 4 = 7"]
    rows = [{"id": number, "problem": f"{number}?", "steps": steps[: number % 4], "label": -1} for number in range(12)]
    rows[5]["label"], rows[6]["label"] = 0, 1
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = trained(tmp_path, source=str(tmp_path), subsets=["gsm8k"], rows_per_shard=4)
    folder = StageFolder(config.run.dir, "processbench")
    manifest = pipeline.run_stage(config, "processbench")
    assert manifest["rows_out"] == 12 and manifest["failed"] == {"no_steps": 3} and not manifest["resumed"]
    first = [(row["id"], row["step_rewards"]) for row in folder.rows()]
    assert [len(rewards or ()) for _, rewards in first] == [number % 4 for number in range(12)]

    folder.manifest_path.unlink()
    folder.part_path(1).unlink()
    kept = folder.part_path(0).stat().st_mtime_ns
    assert pipeline.run_stage(config, "processbench")["resumed"]
    assert folder.part_path(0).stat().st_mtime_ns == kept
    assert [(row["id"], row["step_rewards"]) for row in folder.rows()] == first
