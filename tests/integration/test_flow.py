"""All stages on a tiny model, from problems to report, and what a second start does."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prm_ray import demo
from prm_ray.config import RunConfig
from prm_ray.core.compute import run_flops
from prm_ray.core.packing import PromptGroup
from prm_ray.errors import UserError
from prm_ray.models import count_parameters
from prm_ray.scorer import Scorer
from prm_ray.serve import server
from prm_ray.stages import pipeline, policy
from prm_ray.stages.costs import read_manifests
from prm_ray.stages.sampling import sampler_options
from prm_ray.stages.transformers_sampler import TransformersSampler
from prm_ray.tables import StageFolder
from tests.ports import free_port
from tests.tables_by_hand import tiny_config

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def finished(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_config(
        tmp_path_factory.mktemp("flow"),
        tiny_model,
        warmup={"enabled": True, "num_problems": 16, "batch_size": 8, "lr": 1e-3},
        train={"lr": 1e-3, "validation_fraction": 0.0},
    )
    pipeline.run_all(config)
    return config


def test_every_prompt_and_sample_is_in_every_table_once(finished: RunConfig) -> None:
    for stage, num_problems in (("generate", 16), ("label", 16), ("reference", 16), ("score", 4)):
        rows = list(StageFolder(finished.run.dir, stage).rows(["prompt_id", "sample_index"]))
        assert len({(row["prompt_id"], row["sample_index"]) for row in rows}) == len(rows) == 4 * num_problems


def test_the_scored_token_ids_are_the_sampled_ones(finished: RunConfig) -> None:
    columns = ["prompt_id", "sample_index", "prompt_tokens", "response_tokens"]
    sampled = list(StageFolder(finished.run.dir, "generate").rows(columns))
    for row in StageFolder(finished.run.dir, "score").rows(columns):
        assert row in sampled


def test_step_rewards_in_the_table_add_up(finished: RunConfig) -> None:
    for row in StageFolder(finished.run.dir, "score").rows():
        assert len(row["token_rewards"]) == len(row["response_tokens"]) == len(row["ref_logprobs"])
        assert sum(row["step_rewards"]) == pytest.approx(row["reward_sum"], abs=1e-5)
        assert sum(row["token_rewards"]) == pytest.approx(row["reward_sum"], abs=1e-5)


def test_a_scorer_gives_the_rewards_of_the_batch_stage(finished: RunConfig) -> None:
    """It computes both models anew, one response at a time; the table came from cached log-probs, eight at a time."""
    scorer = Scorer.from_pretrained(StageFolder(finished.run.dir, "train").path, dtype="float32")
    for row in StageFolder(finished.run.dir, "score").rows():
        (((*rewards,),),) = scorer.score_tokens([PromptGroup(row["prompt_tokens"], [row["response_tokens"]])])
        assert rewards == pytest.approx(row["token_rewards"], abs=1e-5)
        assert any(rewards)


def test_scoring_again_without_the_reference_redoes_no_training_and_the_checkpoint_knows(
    finished: RunConfig, tmp_path: Path
) -> None:
    """The log-probs behind both kinds of rewards are the same; who loads the checkpoint rewards as the table does."""
    with_it = list(StageFolder(finished.run.dir, "score").rows())
    shutil.copytree(finished.run.dir, tmp_path / "run")
    update = {
        "run": finished.run.model_copy(update={"dir": tmp_path / "run"}),
        "score": finished.score.model_copy(update={"with_reference": False}),
    }
    config = finished.model_copy(update=update)
    trained = StageFolder(finished.run.dir, "train").manifest()
    pipeline.clear_from(config, "score")
    pipeline.run_all(config)
    assert StageFolder(config.run.dir, "train").manifest() == trained
    rows = list(StageFolder(config.run.dir, "score").rows())
    for row, before in zip(rows, with_it, strict=True):
        beta = config.train.beta
        assert row["policy_logprobs"] == pytest.approx(before["policy_logprobs"], abs=1e-4)
        assert row["token_rewards"] == pytest.approx([beta * value for value in row["policy_logprobs"]], abs=1e-5)
    scorer = Scorer.from_pretrained(StageFolder(config.run.dir, "train").path, dtype="float32")
    assert scorer.reference is None
    (((*rewards,),),) = scorer.score_tokens([PromptGroup(rows[0]["prompt_tokens"], [rows[0]["response_tokens"]])])
    assert rewards == pytest.approx(rows[0]["token_rewards"], abs=1e-5)
    with pytest.raises(UserError, match=r"score.with_reference is true, but .* was scored with false"):
        server.start(config.model_copy(update={"score": finished.score}))


def finished_report(config: RunConfig, stage: str) -> dict[str, Any]:
    return json.loads((StageFolder(config.run.dir, stage).path / "report.json").read_text())


def test_the_manifests_know_what_each_stage_computed(finished: RunConfig) -> None:
    flops = run_flops(read_manifests(finished))
    responses = list(StageFolder(finished.run.dir, "score").rows())
    prompts = {row["prompt_id"]: len(row["prompt_tokens"]) for row in responses}
    num_tokens = sum(prompts.values()) + sum(len(row["response_tokens"]) for row in responses)
    assert flops["score"] == 2 * count_parameters(finished.model.name) * num_tokens
    assert flops["label"] == 0 and all(flops[stage] for stage in ("warmup", "generate", "reference", "train"))
    assert finished_report(finished, "evaluate")["scoring_cost"]["policy"] > 0


def test_policy_asks_both_models_every_held_out_problem_and_judges_what_they_say(finished: RunConfig) -> None:
    pipeline.run_stage(finished, "policy")
    rows = list(StageFolder(finished.run.dir, "policy").rows())
    problems = {row["problem"] for row in StageFolder(finished.run.dir, "score").rows(["problem"])}
    for whose, stage in (("prm", "train"), ("generator", "warmup")):
        mine = [row for row in rows if row["generator"] == whose]
        assert {row["problem"] for row in mine} == problems and len(mine) == len(problems) == 4
        model = str(StageFolder(finished.run.dir, stage).path)
        sampler = TransformersSampler(sampler_options(policy.sampling_config(finished), model))
        for row in mine:
            ((sample,),) = asyncio.run(sampler.sample([row["prompt_tokens"]], [0]))
            assert row["response_tokens"] == sample.tokens and row["correct"] == (len(row["text"]) % 2 == 0)
    right = sum(row["correct"] for row in rows if row["generator"] == "prm")
    assert finished_report(finished, "policy")["accuracy"]["prm"]["value"] == right / 4


def test_a_second_start_does_nothing(finished: RunConfig) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(finished.run.dir).rglob("*") if path.is_file()}

    before = times()
    pipeline.run_all(finished)
    assert times() == before


def test_the_untrained_policy_scores_exactly_zero(finished: RunConfig) -> None:
    """A checkpoint that was never moved: rewards against the cached reference are exactly 0, not nearly."""
    warmed_up = str(StageFolder(finished.run.dir, "warmup").path)
    scorer = Scorer.from_pretrained(warmed_up, warmed_up, dtype="float32", beta=1.0)
    for scored in scorer.score("1+2", ["3", "4\n5"]):
        assert set(scored.token_rewards) == {0.0}


def test_the_example_prints_a_reward_a_step(finished: RunConfig) -> None:
    checkpoint = str(StageFolder(finished.run.dir, "train").path)
    command = [sys.executable, "examples/score_one_solution.py", checkpoint, "1+2", r"3\n4"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[1] for line in output] == ["3", "4", "sum"]
    rewards = [float(line.split()[0]) for line in output]
    assert rewards[0] + rewards[1] == pytest.approx(rewards[2], abs=2e-4)


def test_the_demo_ends_with_a_held_out_problem_ranked_by_the_real_server(
    finished: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "free_port", free_port)
    demo.run(finished)
    shown = capsys.readouterr().out
    assert "candidates  4, ranked over HTTP by the sum of their step rewards" in shown
    assert "the pick, answer" in shown and "peak memory" in shown
    rewards = [float(line.split()[0]) for line in shown.splitlines() if line.rstrip().endswith(("right", "wrong"))]
    assert len(rewards) == 4 and rewards == sorted(rewards, reverse=True)
