"""An experiment on a tiny model with the real flow: stages that are shared are made once, failures stay alone."""

import json
from pathlib import Path

import pytest

from prm_ray.experiment.execute import run_experiment
from prm_ray.experiment.grid import Experiment, load_experiment
from prm_ray.tables import StageFolder

BASE = """
[model]
name = "{model}"
dtype = "float32"
[problems]
num_train = 12
num_test = 6
[generate]
backend = "transformers"
num_samples = 4
max_tokens = 12
problems_per_shard = 4
[label]
judge = "tests.judges:even_length"
timeout_seconds = 120
[reference]
step_rule = "newline"
[train]
lr = 1e-3
batch_size = 8
[rerank]
sizes = [1, 2, 4]
"""
GRID = """
base = "base.toml"
title = "Two ways"
seeds = [0, 1]
[[variant]]
name = "ce"
label = "Cross-entropy"
[[variant]]
name = "two"
label = "After cross-entropy"
set.reference.model = "{ce}/checkpoint"
[[variant]]
name = "lost"
set.train.objective = "dpo"
set.train.max_pairs = 1
set.train.lr = 1e30
"""
SHARED = ("generate", "label", "reference")


@pytest.fixture
def files(tmp_path: Path, tiny_model: str) -> Path:
    (tmp_path / "base.toml").write_text(BASE.format(model=tiny_model))
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path


def load(files: Path) -> Experiment:
    return load_experiment(files / "grid.toml", folder=str(files / "runs"))


def everything(folder: Path) -> dict[Path, int]:
    """Files of the runs, not of the comparison, which is always written anew."""
    found = {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    return {path: at for path, at in found.items() if "comparison" not in path.parts}


@pytest.mark.usefixtures("ray_local")
def test_two_variants_with_two_seeds_share_what_they_can_and_are_done_once(files: Path):
    grid = load(files)
    assert run_experiment(grid, ["two"]) == []
    runs = {run.name: run.config.run.dir for run in grid.runs}
    for name in ("ce-0", "ce-1"):
        assert all(StageFolder(runs[name], stage).path.is_symlink() for stage in SHARED)
        assert not StageFolder(runs[name], "train").path.is_symlink()
    for name in ("two-0", "two-1"):  # each has the reference that its own `ce` is
        assert [StageFolder(runs[name], stage).path.is_symlink() for stage in SHARED] == [True, True, False]
    rewards = {
        name: [row["reward_sum"] for row in StageFolder(runs[name], "score").rows()] for name in ("ce-0", "ce-1")
    }
    assert rewards["ce-0"] != rewards["ce-1"]
    data = json.loads((files / "runs" / "comparison" / "comparison.json").read_text())
    assert [(method["label"], method["seeds"]) for method in data["methods"]] == [
        ("Cross-entropy", [0, 1]),
        ("After cross-entropy", [0, 1]),
    ]
    assert data["notes"] == ["Not run yet: lost-0, lost-1."]
    before = everything(files / "runs")
    assert run_experiment(load(files), ["two"]) == []
    assert everything(files / "runs") == before


@pytest.mark.usefixtures("ray_local")
def test_a_variant_that_fails_is_named_with_its_reason_and_the_others_go_on(files: Path):
    (files / "grid.toml").write_text(GRID.replace('name = "lost"', 'name = "a_lost"').replace("seeds = [0, 1]", ""))
    text = (files / "grid.toml").read_text().replace("{ce}", "{a_lost}")
    (files / "grid.toml").write_text(text)
    failures = run_experiment(load(files))
    assert [line.partition(": ")[0] for line in failures] == ["a_lost-0", "two-0"]
    assert "not finite" in failures[0] and failures[1] == "two-0: needs a_lost-0, which failed"
    data = json.loads((files / "runs" / "comparison" / "comparison.json").read_text())
    assert [method["name"] for method in data["methods"]] == ["ce"] and data["notes"][0].startswith("a_lost-0 failed: ")
