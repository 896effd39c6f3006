"""Every config file in the repository is valid and says what it is for."""

import json
from pathlib import Path

import pytest

from prm_ray.config import load_config
from prm_ray.errors import UserError
from prm_ray.experiment.grid import load_experiment, upstream
from prm_ray.experiment.sharing import Sharing

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*.toml"))
EXPERIMENTS = sorted(FOLDER.glob("experiments/*.toml"))


def test_there_are_configs():
    assert CONFIGS and EXPERIMENTS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid(path: Path):
    assert load_config(path).stages()[-1] == "evaluate"


@pytest.mark.parametrize("path", [*CONFIGS, *EXPERIMENTS], ids=lambda path: path.stem)
def test_a_shipped_config_opens_with_what_it_is_for(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_two_configs_never_share_a_run_folder():
    folders = [load_config(path).run.dir for path in CONFIGS]
    assert len(set(folders)) == len(folders)


def test_a_run_folder_is_absolute_because_workers_have_other_working_folders():
    assert all(load_config(path).run.dir.is_absolute() for path in CONFIGS)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_experiment_is_valid_and_its_variants_differ(path: Path):
    experiment = load_experiment(path)
    settings = [json.dumps(run.settings | {"run": {}}, sort_keys=True) for run in experiment.runs]
    assert len(set(settings)) == len(settings) > 8
    groups = {run.variant.group for run in experiment.compared}
    assert groups == set(experiment.groups)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_experiment_makes_the_costly_stages_once(path: Path):
    sharing = Sharing(load_experiment(path).runs)
    makers: dict[str, set[str]] = {}
    for run in load_experiment(path).runs:
        for stage in upstream(run.config):
            makers.setdefault(stage, set()).add(sharing.maker(run, stage).name)
    assert len(makers["generate"]) == len([run for run in load_experiment(path).runs if run.variant.data_only])
    assert len(makers["step_label"]) <= 4  # Monte Carlo and the truth once, a verifier's confidence once a seed


def test_an_empty_word_takes_a_value_out_of_the_file() -> None:
    """A head has no beta, and the demo's file has one."""
    words = ["train.reward=value_head", "train.beta="]
    assert load_config(FOLDER / "demo.toml", words).train.reward == "value_head"
    with pytest.raises(UserError, match="beta is for reward log_ratio, not value_head"):
        load_config(FOLDER / "demo.toml", words[:1])
