"""A whole run of a model whose config, class and tokenizer are code in its folder."""

from pathlib import Path

import pytest

from prm_ray.scorer import Scorer
from prm_ray.stages import pipeline
from prm_ray.tables import StageFolder
from tests.owncode import save_model_with_own_code
from tests.tables_by_hand import tiny_config

pytestmark = pytest.mark.usefixtures("ray_local")


def test_every_stage_runs_the_code_of_a_model_where_that_is_allowed(tmp_path: Path) -> None:
    own = save_model_with_own_code(tmp_path / "own")
    config = tiny_config(tmp_path / "run", own, model={"trust_remote_code": True}, train={"lr": 1e-3})
    pipeline.run_all(config)
    rows = list(StageFolder(config.run.dir, "score").rows())
    assert len(rows) == 16 and not any(row["error"] for row in rows)
    checkpoint = StageFolder(config.run.dir, "train").path
    assert (checkpoint / "own_code.py").is_file(), "without it nobody could load the checkpoint"
    (again,) = Scorer.from_pretrained(checkpoint, dtype="float32", trust_remote_code=True).score(
        rows[0]["problem"], [rows[0]["response_tokens"]]
    )
    assert again.step_rewards == pytest.approx(rows[0]["step_rewards"], abs=1e-4)
