"""What cannot be searched is said in one line before anything heavy loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from prm_ray.config import RunConfig, load_config
from prm_ray.errors import UserError
from prm_ray.stages import pipeline, search
from tests.searchruns import run_to_search

MESSAGES = {
    "search.sizes=[0]": "search: sizes must be at least 1 (got 0)",
    "search.sizes=[]": "search.sizes: List should have at least 1 item after validation, not 0 (got [])",
    'search.strategies=["dfs"]': "search.strategies.0: Input should be 'best_of_n'",
    'search.strategies=["beam", "beam"]': "search: strategies and sizes must differ among each other",
    "search.expand=3": "search: sizes must be multiples of expand, 3, for beam (got 16)",
    "search.lookahead=0": "search.lookahead: Input should be greater than or equal to 1 (got 0)",
    "search.resample_temperature=0": "search.resample_temperature: Input should be greater than 0 (got 0)",
    "search.pick=first": "search.pick: Input should be 'best', 'weighted_vote' or 'majority' (got 'first')",
    "search.num_generators=0": "search.num_generators: Input should be greater than or equal to 1 (got 0)",
    "search.balance_seconds=60": "search: balance_seconds 60 needs a generator and a scorer with the same GPUs: "
    "gpus_per_generator 1 must equal gpus_per_scorer 0",
    "search.beams=4": "search.beams: unknown key",
}


@pytest.mark.parametrize("override", MESSAGES)
def test_a_wrong_setting_is_named_with_its_value(override: str, tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('[search]\nstrategies = ["best_of_n", "beam"]\ngpus_per_generator = 1\n')
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    assert MESSAGES[override] in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_answers_in_one_line_and_loads_nothing(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("[search]\nsizes = [0]\n")
    command = [sys.executable, "-X", "importtime", "-m", "prm_ray.cli", "search", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("prm-ray: error: search: sizes must be at least 1")
    assert not any(f"| {module}" in ended.stderr for module in ("torch", "ray", "transformers"))


def test_best_of_n_is_searched_with_the_largest_size_alone():
    config = RunConfig.model_validate({"search": {"strategies": ["best_of_n", "dvts"], "sizes": [16, 4]}})
    assert config.search.arms == [("best_of_n", 16), ("dvts", 4), ("dvts", 16)]


@pytest.mark.parametrize("gpus", [0, 0.5, 1])
def test_workers_that_have_the_same_gpus_may_change_pools(gpus: float):
    search = {"balance_seconds": 60, "gpus_per_generator": gpus, "gpus_per_scorer": gpus}
    assert RunConfig.model_validate({"search": search}).search.balance_seconds == 60


def test_a_temperature_of_zero_is_refused(tmp_path: Path, tiny_model: str):
    config = run_to_search(tmp_path, tiny_model, 4)
    cold = config.model_copy(update={"generate": config.generate.model_copy(update={"temperature": 0.0})})
    with pytest.raises(UserError, match=r"generate\.temperature 0 makes all responses equal: search needs one above 0"):
        search.check(cold)


def test_held_out_problems_without_gold_answers_are_refused(tmp_path: Path, tiny_model: str, monkeypatch):
    config = run_to_search(tmp_path, tiny_model, 4)
    search.check(config)
    monkeypatch.setattr("prm_ray.tables.StageFolder.rows", lambda *_: iter([]))
    with pytest.raises(UserError, match="no held-out problem with a gold answer"):
        search.check(config)


def test_a_judge_that_does_not_load_is_named(tmp_path: Path, tiny_model: str):
    config = run_to_search(tmp_path, tiny_model, 4)
    odd = config.model_copy(update={"label": config.label.model_copy(update={"judge": "nowhere:judge"})})
    with pytest.raises(UserError, match=r"label\.judge 'nowhere:judge': ModuleNotFoundError"):
        search.check(odd)


def test_a_level_of_rejection_that_the_held_out_responses_cannot_give_is_refused_before_anything_loads(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
):
    config = run_to_search(tmp_path, tiny_model, 4, strategies=["rejection"], lost_right=0.01)
    rows = [{"correct": number < 9} for number in range(20)]
    monkeypatch.setattr("prm_ray.stages.searching.calibration.held_out_responses", lambda config: rows)
    with pytest.raises(UserError, match=r"search\.lost_right 0\.01: must be at least 0\.1, for there are 9 right"):
        search.check(config)


def test_what_was_refused_before_anything_was_made_pins_no_settings(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise UserError("a generator of search needs 1 GPU")

    monkeypatch.setattr("prm_ray.stages.cluster.start_ray", lambda config: None)
    monkeypatch.setattr("prm_ray.stages.gpus.say_unused_gpus", lambda *_: None)
    monkeypatch.setattr(search, "run", refuse)
    first = run_to_search(tmp_path, tiny_model, 4, sizes=[8])
    other = first.model_copy(update={"search": first.search.model_copy(update={"sizes": [4]})})
    for config in (first, other):
        with pytest.raises(UserError, match="needs 1 GPU"):
            pipeline.run_stage(config, "search")
