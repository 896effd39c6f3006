"""Every config file in the repository is valid and says what it is for."""

from pathlib import Path

import pytest

from prm_ray.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid(path: Path):
    assert load_config(path).stages()[-1] == "evaluate"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_opens_with_what_it_is_for(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_two_configs_never_share_a_run_folder():
    folders = [load_config(path).run.dir for path in CONFIGS]
    assert len(set(folders)) == len(folders)


def test_a_run_folder_is_absolute_because_workers_have_other_working_folders():
    assert all(load_config(path).run.dir.is_absolute() for path in CONFIGS)
