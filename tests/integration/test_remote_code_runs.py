"""A whole run of a model whose config, class and tokenizer are code in its folder; then searched with, and served."""

from pathlib import Path

import pytest

from prm_ray.scorer import Scorer
from prm_ray.serve import server
from prm_ray.stages import pipeline
from prm_ray.tables import StageFolder
from tests.owncode import save_model_with_own_code
from tests.ports import free_port
from tests.servedruns import call
from tests.tables_by_hand import tiny_config

pytestmark = pytest.mark.usefixtures("ray_local")


def test_every_stage_runs_the_code_of_a_model_where_that_is_allowed(tmp_path: Path) -> None:
    own = save_model_with_own_code(tmp_path / "own")
    config = tiny_config(
        tmp_path / "run",
        own,
        model={"trust_remote_code": True},
        train={"lr": 1e-3},
        search={"sizes": [2], "num_problems": 2},
        serve={"generator": "vllm"},
    )
    pipeline.run_all(config)
    rows = list(StageFolder(config.run.dir, "score").rows())
    assert len(rows) == 16 and not any(row["error"] for row in rows)
    checkpoint = StageFolder(config.run.dir, "train").path
    assert (checkpoint / "own_code.py").is_file(), "without it nobody could load the checkpoint"
    (again,) = Scorer.from_pretrained(checkpoint, dtype="float32", trust_remote_code=True).score(
        rows[0]["problem"], [rows[0]["response_tokens"]]
    )
    assert again.step_rewards == pytest.approx(rows[0]["step_rewards"], abs=1e-4)
    pipeline.run_stage(config, "search")
    candidates = list(StageFolder(config.run.dir, "search").rows())
    assert len(candidates) == 4 and not any(row["error"] for row in candidates)
    section = config.serve.model_copy(update={"port": free_port()})
    url = server.start(config.model_copy(update={"serve": section}))
    try:
        body = {"problem": rows[0]["problem"], "responses": [rows[0]["response_tokens"]]}
        served = call(f"{url}/v1/rewards", body)
        chat = call(f"{url}/v1/chat/completions", {"messages": [{"role": "user", "content": "1 + 2"}], "best_of": 4})
    finally:
        server.stop()
    assert served.status == chat.status == 200, (served.body, chat.body)
    steps = [step["reward"] for step in served.body["results"][0]["steps"]]
    assert steps == pytest.approx(rows[0]["step_rewards"], abs=1e-4)
