"""A run with a head, or with a published model: from the tables of another run to its report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prm_ray.compare.runs import read_run
from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.headscorer import HeadScorer
from prm_ray.stages import pipeline
from prm_ray.tables import StageFolder
from tests.published import save_published
from tests.tables_by_hand import tiny_config

pytestmark = pytest.mark.usefixtures("ray_local")

VARIANTS: dict[str, dict[str, Any]] = {
    "outcome head": {"train": {"reward": "value_head", "objective": "bradley_terry", "head_lr": 1e-2}},
    "label token on step labels": {
        "train": {"reward": "label_token", "objective": "step_ce"},
        "step_label": {"method": "truth"},
    },
    "second stage": {
        "train": {"objective": "step_ranking", "start": "{model}"},
        "step_label": {"method": "truth"},
    },
}


@pytest.fixture(scope="module")
def upstream(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_config(tmp_path_factory.mktemp("upstream"), tiny_model)
    for stage in ("generate", "label", "reference"):
        pipeline.run_stage(config, stage)
    return config


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_reward_model_gets_from_tables_to_a_report(
    upstream: RunConfig, tiny_model: str, tmp_path: Path, name: str
) -> None:
    shutil.copytree(upstream.run.dir, tmp_path / "run")
    values = {"lr": 1e-3, "batch_size": 8, "validation_fraction": 0.2}
    sections = json.loads(json.dumps(VARIANTS[name]).replace("{model}", tiny_model))
    config = RunConfig.model_validate(
        upstream.model_dump(by_alias=True)
        | {"run": {"dir": tmp_path / "run"}, "train": values | sections["train"]}
        | {key: section for key, section in sections.items() if key != "train"}
    )
    pipeline.run_all(config)
    report = json.loads((StageFolder(config.run.dir, "evaluate").path / "report.json").read_text())
    assert report["num_problems"] == 4 and report["reward"] == config.train.reward
    rows = list(StageFolder(config.run.dir, "score").rows())
    assert all(len(row["step_rewards"]) == len(row["step_ends"]) for row in rows)
    if config.train.reward == "log_ratio":
        return
    assert all(row["token_rewards"] is None and row["reward_last"] == row["step_rewards"][-1] for row in rows)
    scorer = HeadScorer.from_pretrained(StageFolder(config.run.dir, "train").path, dtype="float32")
    for row in rows:
        group = PromptGroup(row["prompt_tokens"], [row["response_tokens"]])
        (((*logits,),),) = scorer.step_logits([group], [[row["step_ends"]]])
        assert logits == pytest.approx(row["step_rewards"], abs=1e-4)


def test_a_published_model_scores_in_place_of_a_trained_one(upstream: RunConfig, tmp_path: Path) -> None:
    """Random weights write hardly any text, so most steps are blank, which such a model cannot read."""
    shutil.copytree(upstream.run.dir, tmp_path / "run")
    model = save_published(tmp_path / "model", "rlhflow")
    config = RunConfig.model_validate(
        upstream.model_dump(by_alias=True)
        | {"run": {"dir": tmp_path / "run"}, "score": {"model": model, "style": "rlhflow"}}
    )
    manifests = pipeline.run_all(config)
    assert "train" not in manifests and manifests["score"]["rows_out"] == 16
    rows = list(StageFolder(config.run.dir, "score").rows())
    assert {row["error"] is None for row in rows} == {row["step_rewards"] is not None for row in rows}
    report = json.loads((StageFolder(config.run.dir, "evaluate").path / "report.json").read_text())
    assert report["reward"] == "rlhflow" and report["scoring_cost"]["reference"] == 0
    assert f"<b>{model}</b>" in (StageFolder(config.run.dir, "evaluate").path / "report.html").read_text()
    finished = read_run(config.run.dir)
    good = [row for row in rows if row["error"] is None and row["step_rewards"]]
    assert sum(len(each.rewards_N) for each in finished.candidates.values()) == len(good) > 0
