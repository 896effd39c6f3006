"""The command as a user meets it: a real process, its exit code and what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prm_ray.cli import MEASUREMENT_HELP, STAGE_HELP, main
from prm_ray.config import MEASUREMENTS, STAGES

PROGRAM = """
import json, sys
from prm_ray.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "ray", "transformers", "vllm", "pydantic", "pyarrow"} & set(sys.modules)
    print("loaded", json.dumps(sorted(heavy)), file=sys.stdout)
"""


def prm_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def loaded(result: subprocess.CompletedProcess[str]) -> list[str]:
    return json.loads(result.stdout.splitlines()[-1].removeprefix("loaded "))


def only_error(result: subprocess.CompletedProcess[str]) -> str:
    (line,) = result.stderr.splitlines()
    assert line.startswith("prm-ray: error: ")
    return line.removeprefix("prm-ray: error: ")


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n')
    return str(path)


def test_the_verbs_are_the_stages_in_their_order():
    assert tuple(STAGE_HELP) == STAGES
    assert tuple(MEASUREMENT_HELP) == tuple(MEASUREMENTS)


def test_help_lists_every_verb_and_an_example_without_loading_anything_heavy():
    result = prm_ray("--help")
    assert result.returncode == 0
    assert all(f"\n  {verb} " in result.stdout for verb in ("run", *STAGES, *MEASUREMENTS, "serve", "demo"))
    assert "prm-ray train configs/debug.toml train.beta=0.1" in result.stdout
    assert loaded(result) == []


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("run", "Run all stages of a config, skipping finished ones."),
        ("train", "Train the process reward model on the labels."),
        ("serve", "Serve the trained model over HTTP."),
        ("processbench", "Does the trained model find the first wrong step of ProcessBench's solutions?"),
    ],
)
def test_a_verb_explains_itself(verb: str, sentence: str):
    result = prm_ray(verb, "--help")
    assert result.returncode == 0
    assert f"usage: prm-ray {verb}" in result.stdout and f"\n{sentence}\n" in result.stdout
    assert loaded(result) == []


def test_a_wrong_key_is_one_line_and_exit_code_2_before_torch_or_ray(config_file: str):
    result = prm_ray("run", config_file, "train.betaa=1")
    assert result.returncode == 2
    assert only_error(result) == "train.betaa: unknown key"
    assert not {"torch", "ray"} & set(loaded(result))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "VERB"),
        (["trian", "x.toml"], "invalid choice: 'trian'"),
        (["run"], "required: CONFIG (see"),
        (["run", "nowhere.toml"], "config file 'nowhere.toml' does not exist"),
        (["run", "nowhere.toml", "--fresh=nothing"], "invalid choice: 'nothing'"),
        (["run", "nowhere.toml", "--fresh", "trian"], "invalid choice: 'trian'"),
        (["demo", "train.beta=-1"], "train.beta: Input should be greater than 0 (got -1)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], message: str):
    result = prm_ray(*arguments)
    assert result.returncode == 2
    assert message in only_error(result)


@pytest.mark.parametrize(
    "order", [("--fresh", "train.lr=0"), ("train.lr=0", "--fresh"), ("--fresh", "train", "train.lr=0")]
)
def test_an_override_beside_fresh_is_not_taken_for_a_stage(config_file: str, order: tuple[str, ...]):
    assert "train.lr: Input should be greater than 0" in only_error(prm_ray("run", config_file, *order))


def test_a_stage_without_its_input_names_the_stage_to_run_and_does_not_start_ray(config_file: str):
    result = prm_ray("train", config_file)
    assert result.returncode == 2
    assert only_error(result).endswith("responses' is not finished; run the generate stage first")
    assert "ray" not in loaded(result)


def test_serving_an_untrained_run_names_the_train_stage(config_file: str):
    result = prm_ray("serve", config_file)
    assert result.returncode == 2
    assert "is not finished; run the train stage first" in only_error(result)


def test_a_stage_this_run_does_not_have_is_refused_with_the_reason(config_file: str):
    assert only_error(prm_ray("import", config_file)) == "this run has no import stage: import.source is not set"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith("prm-ray ")
