"""train under Ray Train: any number of workers, killed and resumed, gives the same losses."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from prm_ray.config import RunConfig
from prm_ray.errors import EngineError, NonFiniteLossError, UserError
from prm_ray.models import load_model, read_prm_json
from prm_ray.scorer import Scorer
from prm_ray.scoring.served import load_scorer, served_models
from prm_ray.stages import train
from prm_ray.tables import StageFolder
from tests.disks import SeenHereOnly
from tests.ports import load_and_note_addresses
from tests.tables_by_hand import tiny_config, write_reference_table

pytestmark = pytest.mark.usefixtures("ray_local")

NUM_PROMPTS = 9
"""Two are held out and two make a step, so that the last step of an epoch has one."""


def train_run(config: RunConfig) -> list[dict]:
    folder = StageFolder(config.run.dir, "train")
    folder.path.mkdir(parents=True)
    train.run(config, folder)
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_worker(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[dict]]:
    config = tiny_config(tmp_path_factory.mktemp("one"), tiny_model, train={"epochs": 4})
    write_reference_table(config, NUM_PROMPTS)
    return config, train_run(config)


def test_the_result_is_a_plain_model_folder_with_prm_json(one_worker: tuple[RunConfig, list[dict]]) -> None:
    config, _ = one_worker
    checkpoint = StageFolder(config.run.dir, "train").path
    assert load_model(str(checkpoint), "float32").config.model_type == "llama"
    facts = read_prm_json(checkpoint)
    assert (facts["objective"], facts["beta"], facts["reference"]) == ("ce", 0.5, config.model.name)
    assert not (checkpoint / ".ray_train").exists()


def test_the_loss_falls_and_held_out_figures_are_logged(one_worker: tuple[RunConfig, list[dict]]) -> None:
    _, lines = one_worker
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy = reference: every reward is 0, the loss log 2
    assert sum(line["loss"] for line in lines[-4:]) / 4 < 0.6
    assert 0 <= lines[-1]["held_out_accuracy"] <= 1
    assert {"held_out_loss", "held_out_auc"} <= lines[1].keys()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_give_the_losses_of_one(
    one_worker: tuple[RunConfig, list[dict]], tmp_path: Path, parallel: str
) -> None:
    """The last step of an epoch has one prompt: nothing for the second worker. Few tokens a batch: unequal numbers."""
    config, expected = one_worker
    values = {"num_workers": 2, "parallel": parallel, "token_budget": 12}
    two = tiny_config(tmp_path, config.model.name, train={**config.train.model_dump(), **values})
    write_reference_table(two, NUM_PROMPTS)
    lines = train_run(two)
    for name in ("loss", "grad_norm", "held_out_loss"):
        ours, theirs = ([line[name] for line in run if name in line] for run in (lines, expected))
        assert ours == pytest.approx(theirs, abs=1e-4), name
    policies = [load_model(str(StageFolder(each.run.dir, "train").path), "float32") for each in (config, two)]
    for ours, theirs in zip(*(policy.parameters() for policy in policies), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_workers_of_one_machine_meet_on_loopback_wherever_its_name_leads(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of several, where Ray has their machines: tests/unit/test_gloo.py."""
    (noted := tmp_path / "noted").mkdir()
    monkeypatch.setattr(train, "load_model", partial(load_and_note_addresses, noted))
    config = tiny_config(tmp_path / "run", tiny_model, train={"num_workers": 2})
    write_reference_table(config)
    train_run(config)
    listening = [path.read_text().split() for path in noted.iterdir()]
    assert len(listening) == 2 and all("127.0.0.1" in each for each in listening)


def test_a_loss_that_is_not_finite_ends_the_stage_with_its_reason(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_model, train={"beta": 1e38, "lr": 1.0})
    write_reference_table(config)
    with pytest.raises(NonFiniteLossError, match=r"not finite; lower the learning rate"):
        train_run(config)


def test_labels_that_are_all_the_same_are_refused_before_training(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_model)
    folder = write_reference_table(config)
    rows = [row | {"correct": False} for row in folder.read_part(0)]
    folder.part_path(0).unlink()
    folder.write_part(0, rows)
    with pytest.raises(UserError, match="all 32 training responses are wrong"):
        train_run(config)


def test_what_is_selected_is_what_is_trained_on(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, tiny_model, select={"num_problems": 4, "num_responses": 3}, train={"validation_fraction": 0}
    )
    write_reference_table(config, NUM_PROMPTS)
    folder = StageFolder(config.run.dir, "train")
    folder.path.mkdir(parents=True)
    result = train.run(config, folder)
    assert (result.rows_in, result.rows_out) == (36, 12)
    assert result.details["selection"]["left_out"] == {"num_responses": 9, "num_problems": 15}
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["num_responses"] for line in lines] == [9, 3]
    lengths = result.details["response_tokens"]
    assert lengths["train"]["right"]["num"] + lengths["train"]["wrong"]["num"] == 12
    assert lengths["test"]["right"]["num"] == 0


@pytest.mark.parametrize(("settings", "num_trained"), [({}, 28), ({"skip_uniform_prompts": True}, 24)])
def test_tokens_are_those_of_the_responses_that_are_trained_on(
    tiny_model: str, tmp_path: Path, settings: dict, num_trained: int
) -> None:
    """Of two tokens each. Two of nine problems are held out, and of one all responses are right."""
    config = tiny_config(tmp_path, tiny_model, train={"epochs": 2, **settings})
    table = write_reference_table(config, NUM_PROMPTS)
    rows = table.read_part(0)
    table.part_path(0).unlink()
    for number, row in enumerate(rows):
        row |= {key: row[key][:2] for key in ("response_tokens", "ref_logprobs")} | {"step_ends": [2]}
        row["correct"] = row["prompt_id"] == "p0" or number % 2 == 0
    table.write_part(0, rows)
    folder = StageFolder(config.run.dir, "train")
    folder.path.mkdir(parents=True)
    result = train.run(config, folder)
    assert (result.rows_in, result.rows_out, result.tokens) == (36, num_trained, num_trained * 2 * 2)


def test_the_trained_adapter_lies_over_the_reference_and_scores_in_one_pass(tiny_model: str, tmp_path: Path) -> None:
    """Trained by two workers with sharded weights, in bfloat16 with gradient checkpointing: all at once."""
    settings = {"lora_rank": 4, "lr": 2e-2, "num_workers": 2, "parallel": "fsdp", "gradient_checkpointing": True}
    config = tiny_config(tmp_path, tiny_model, train={"epochs": 4, **settings})
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    write_reference_table(config)
    losses = [line["loss"] for line in train_run(config)]
    checkpoint = StageFolder(config.run.dir, "train").path
    assert losses[0] == pytest.approx(0.6931, abs=0.05)
    assert sum(losses[-4:]) / 4 < 0.6
    assert not list(checkpoint.glob("model*.safetensors"))
    scorer = Scorer.from_pretrained(checkpoint, dtype="bfloat16")
    assert scorer.reference is scorer.policy
    (expected,) = scorer.score("1+2", ["3"])
    assert expected.rewards["sum"] != 0.0
    StageFolder(config.run.dir, "train").finish({"stage": "train"})
    (served,) = load_scorer(served_models(config)[0]).score("1+2", ["3"])
    assert served.rewards == pytest.approx(expected.rewards)


def test_a_target_the_model_does_not_have_ends_the_stage_before_it_begins(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_model, train={"lora_rank": 4, "lora_targets": ["query"]})
    with pytest.raises(UserError, match="'query' must be a linear layer"):
        train.check(config)


def test_a_folder_that_no_worker_sees_is_no_training(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_model)
    write_reference_table(config)
    folder = SeenHereOnly(config.run.dir, "train")
    folder.path.mkdir(parents=True)
    with pytest.raises(EngineError, match="train: its workers ended without a model: do all machines see"):
        train.run(config, folder)
