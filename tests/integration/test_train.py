"""train under Ray Train: any number of workers, killed and resumed, gives the same losses."""

import json
from pathlib import Path

import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import NonFiniteLossError, UserError
from prm_ray.models import load_model, read_prm_json
from prm_ray.stages import train
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config, write_reference_table

pytestmark = pytest.mark.usefixtures("ray_local")


def train_run(config: RunConfig) -> list[dict]:
    folder = StageFolder(config.run.dir, "train")
    folder.path.mkdir(parents=True)
    train.run(config, folder)
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_worker(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[dict]]:
    config = tiny_config(tmp_path_factory.mktemp("one"), tiny_model, train={"epochs": 4})
    write_reference_table(config)
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


def test_two_workers_give_the_losses_of_one(one_worker: tuple[RunConfig, list[dict]], tmp_path: Path) -> None:
    config, expected = one_worker
    settings = {**config.train.model_dump(), "num_workers": 2}
    two = tiny_config(tmp_path, config.model.name, train=settings)
    write_reference_table(two)
    losses = [line["loss"] for line in train_run(two)]
    assert losses == pytest.approx([line["loss"] for line in expected], abs=1e-4)


def test_a_loss_that_is_not_finite_ends_the_stage_with_its_reason(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_model, train={"beta": 1e38, "lr": 1.0})
    write_reference_table(config)
    with pytest.raises(NonFiniteLossError, match=r"not finite; lower the learning rate"):
        train_run(config)


def test_labels_that_are_all_the_same_are_refused_before_training(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_model)
    folder = write_reference_table(config)
    folder.write_part(0, [row | {"correct": False} for row in folder.read_part(0)])
    with pytest.raises(UserError, match="all 32 training responses are wrong"):
        train_run(config)
