"""policy: whose problems are asked, and its figures by hand. Sampling itself is in tests/integration/test_flow.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.stages.heldout import held_out_problems
from prm_ray.stages.policy import make_report, sampling_config, text
from prm_ray.tables import StageFolder


def config_for(tmp_path: Path, **policy: Any) -> RunConfig:
    return RunConfig.model_validate({"run": {"dir": str(tmp_path)}, "policy": policy})


def write_reference(tmp_path: Path, *rows: dict[str, Any]) -> None:
    folder = StageFolder(tmp_path, "reference")
    folder.path.mkdir()
    folder.write_part(0, list(rows))


def row(problem: str | None, gold: str | None, split: str = "test") -> dict[str, Any]:
    return {"split": split, "problem": problem, "gold_answer": gold}


def test_each_held_out_problem_is_asked_once_and_no_training_problem(tmp_path: Path) -> None:
    write_reference(
        tmp_path,
        row("1?", "1"),
        row("1?", "1"),
        row("2?", None),
        row(None, "3"),
        row("4?", "4", "train"),
        row("5?", "5"),
    )
    problems = held_out_problems(config_for(tmp_path), None)
    assert [(problem.problem, problem.answer) for problem in problems] == [("1?", "1"), ("2?", None), ("5?", "5")]
    assert len(held_out_problems(config_for(tmp_path), 2)) == 2


def test_responses_without_gold_answers_cannot_be_compared(tmp_path: Path) -> None:
    write_reference(tmp_path, row("1?", None))
    with pytest.raises(UserError, match="no held-out problem with a gold answer"):
        held_out_problems(config_for(tmp_path), None)


def test_greedy_samples_are_all_equal_so_one_is_asked_for() -> None:
    with pytest.raises(ValueError, match="num_samples must be 1, not 4"):
        RunConfig.model_validate({"policy": {"num_samples": 4}})


def test_vllm_is_not_asked_to_sample_from_an_adapter(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    config = config_for(tmp_path, num_samples=3, temperature=0.5)
    sampling = sampling_config(config).generate
    assert (sampling.backend, sampling.num_samples, sampling.temperature) == ("transformers", 3, 0.5)
    with pytest.raises(UserError, match="'vllm' cannot sample from an adapter"):
        sampling_config(config.model_copy(update={"generate": config.generate.model_copy(update={"backend": "vllm"})}))


def answer(prompt_id: str, whose: str, correct: bool | None, **errors: str) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "generator": whose, "correct": correct, "error": None, "label_error": None} | errors


ROWS = [
    *(answer(f"p{number}", "prm", number < 2) for number in range(8)),
    *(answer(f"p{number}", "generator", number < 4) for number in range(7)),
    answer("p7", "generator", None, label_error="timeout: 5 s"),
    answer("p8", "prm", None, error="empty_response"),
    answer("p8", "generator", True),
    answer("p9", "prm", True),
    answer("p9", "generator", None, error="empty_response"),
]


def test_accuracies_are_over_problems_both_answered_and_the_difference_is_paired(tmp_path: Path) -> None:
    """Two against four of eight: where the PRM is right the generator is too, so no resample favours the PRM."""
    report = make_report(config_for(tmp_path), ROWS)
    assert report["num_problems"] == 8 and report["failed"] == {"empty_response": 2}
    assert [report["accuracy"][whose]["value"] for whose in ("prm", "generator")] == [0.25, 0.5]
    difference = report["difference"]
    assert difference["value"] == -0.25 and difference["low"] < -0.25 < difference["high"] <= 0
    assert report["num_that_could_not_be_judged"] == {"prm": 0, "generator": 1}
    assert "difference   -25.0 points" in text(report) and "greedy" in text(report)


def test_nothing_in_common_is_an_error_not_a_zero(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no problem that both models answered .*empty_response"):
        make_report(config_for(tmp_path), ROWS[-4:-2])
