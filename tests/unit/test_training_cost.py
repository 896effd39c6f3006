"""What it took to make a method: which passes of which runs are counted."""

from pathlib import Path
from typing import Any

import pytest

from prm_ray.compare.cost import training_cost
from prm_ray.tables import StageFolder

LOG_RATIO = {"train.reward": "log_ratio", "train.with_reference": True}
HEAD = {"train.reward": "value_head", "train.with_reference": True}


def run_of(folder: Path, identity: dict[str, Any], labelling: dict[str, Any] | None = None, **train: Any) -> Path:
    """A run with 3 training and 1 held-out response of 10 tokens each, of a model of one parameter."""
    for stage, more in (("generate", {}), ("reference", {})):
        own = StageFolder(folder, stage)
        own.path.mkdir(parents=True)
        if stage == "reference":
            rows = [{"split": "train" if number < 3 else "test", "response_tokens": [5] * 10} for number in range(4)]
            own.write_part(0, rows)
        details = {"num_parameters": 1, "prompt_tokens": 60}
        own.finish({"stage": stage, "tokens": 40, "details": details, "identity": {}, **more})
    if labelling is not None:
        own = StageFolder(folder, "step_label")
        own.path.mkdir()
        own.finish(
            {"stage": "step_label", "details": {"num_parameters": 1, "verifier_tokens": 50}, "identity": labelling}
        )
    own = StageFolder(folder, "train")
    own.path.mkdir()
    own.finish(
        {"stage": "train", "details": {"num_parameters": 1, "trained_tokens": 100, **train}, "identity": identity}
    )
    return own.path


def test_the_reference_counts_where_training_uses_it(tmp_path: Path) -> None:
    """2 a token read or sampled, of which three quarters belong to training problems; 6 a token trained on."""
    run_of(tmp_path / "ce", LOG_RATIO)
    cost = training_cost(tmp_path / "ce")
    assert cost is not None and (cost.collect, cost.label, cost.train) == (150, 0, 600 + 150)
    for name, identity in (("head", HEAD), ("free", LOG_RATIO | {"train.with_reference": False})):
        run_of(tmp_path / name, identity)
        cost = training_cost(tmp_path / name)
        assert cost is not None and cost.train == 600


def test_passes_without_a_gradient_count_as_such(tmp_path: Path) -> None:
    run_of(tmp_path, HEAD, forward_tokens=10)
    cost = training_cost(tmp_path)
    assert cost is not None and cost.train == 620


def test_what_a_method_builds_on_is_part_of_its_cost(tmp_path: Path) -> None:
    """But not its responses, which are the same."""
    verifier = run_of(tmp_path / "verifier", HEAD)
    run_of(tmp_path / "autopsv", HEAD, {"step_label.method": "confidence", "step_label.verifier": str(verifier)})
    cost = training_cost(tmp_path / "autopsv")
    assert cost is not None and (cost.collect, cost.label, cost.train) == (150, 100 + 600, 600)
    first = run_of(tmp_path / "first", LOG_RATIO)
    run_of(tmp_path / "second", LOG_RATIO | {"train.start": str(first)})
    cost = training_cost(tmp_path / "second")
    assert cost is not None and cost.train == 2 * (600 + 150)
    run_of(tmp_path / "public", LOG_RATIO | {"train.start": "some/model"})
    cost = training_cost(tmp_path / "public")
    assert cost is not None and cost.train == 600 + 150


def test_a_run_that_does_not_tell_has_no_cost(tmp_path: Path) -> None:
    first = run_of(tmp_path / "first", LOG_RATIO, trained_tokens=None)
    run_of(tmp_path / "second", LOG_RATIO | {"train.start": str(first)})
    assert training_cost(tmp_path / "first") is None and training_cost(tmp_path / "second") is None


@pytest.mark.parametrize("missing", ["train.with_reference", "train.reward"])
def test_settings_that_an_older_version_did_not_know_count_as_their_defaults(tmp_path: Path, missing: str) -> None:
    run_of(tmp_path, {key: value for key, value in LOG_RATIO.items() if key != missing})
    cost = training_cost(tmp_path)
    assert cost is not None and cost.train == 600 + 150
