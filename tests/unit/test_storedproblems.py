"""Problems as workers get them: the same ones, whatever they come from and however many fit into a file."""

import json
import pickle
from pathlib import Path

import pytest

from prm_ray.attempts import draw
from prm_ray.config import RunConfig
from prm_ray.problems import load_problems
from prm_ray.stages import storedproblems
from prm_ray.stages.storedproblems import store_problems
from prm_ray.tables import StageFolder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    rows = [{"problem": f"{number} + 0", "answer": str(number)} for number in range(50)]
    rows[7] = {"problem": None, "answer": "1"}
    rows[8]["answer"] = ""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[40:]))
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    return RunConfig.model_validate({"run": {"dir": str(tmp_path / "run")}, "problems": sources})


@pytest.mark.parametrize(("per_shard", "num_files"), [(6, 3), (20, 3), (50, 1), (1, 3)])
def test_shards_hold_all_problems_in_their_order(
    config: RunConfig, per_shard: int, num_files: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storedproblems, "_PROBLEMS_A_FILE", 20)
    folder = StageFolder(config.run.dir, "generate")
    folder.path.mkdir(parents=True)
    stored = pickle.loads(pickle.dumps(store_problems(config, folder, per_shard)))
    shards = list(stored)
    assert len(shards) == len(stored) == -(-50 // per_shard) and stored.num_problems == 50
    assert {len(shard) for shard in shards[:-1]} <= {per_shard}
    expected = [(split, problem) for split in ("train", "test") for problem in load_problems(config, split)]
    assert [task for shard in shards for task in shard] == expected
    assert [(task[1].error or "").split(":")[0] for task in expected[7:9]] == ["null_problem", "null_answer"]
    assert len(list(folder.path.glob(".problems-*"))) == num_files


def test_nothing_of_them_stays_when_the_stage_is_finished(config: RunConfig):
    folder = StageFolder(config.run.dir, "generate")
    folder.begin({}, attempt=draw(config.run.dir))
    stored = store_problems(config, folder, 10)
    assert len(stored[4]) == 10 and list(folder.path.rglob(".problems-*"))
    folder.finish({})
    assert folder.is_done() and not list(folder.path.rglob(".problems-*"))
