"""What a job is asked to do, and what is refused before anything is sent."""

from pathlib import Path

import pytest

from prm_ray.cli import _parsed
from prm_ray.config import parse_config
from prm_ray.errors import UserError
from prm_ray.submitting.work import Work, read_work
from prm_ray.tables import FOLDERS
from tests.tables_by_hand import mark_done

SHARED = 'run.dir="/shared/run"'


def work(root: Path, *words: str, verb: str = "run", config: str = "") -> Work:
    (root / "run.toml").write_text(config)
    spelled, asked = _parsed(verb, [str(root / "run.toml"), *words])
    return read_work(verb, spelled, asked, root)


def test_the_job_runs_the_same_verb_with_the_config_as_the_job_sees_it(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    found = work(tmp_path / "sub", SHARED, "train.beta=0.1", "--fresh", verb="train")
    assert found.entrypoint == """python -m prm_ray train run.toml 'run.dir="/shared/run"' train.beta=0.1 --fresh=all"""
    assert found.folder == "/shared/run" and found.files == ("run.toml",)
    assert "--fresh" not in found.again().entrypoint  # what a retry would lose


@pytest.mark.parametrize("folder", ["runs/x", "../x", "~/runs/x"])
def test_a_run_folder_that_would_be_lost_with_the_job_is_refused(tmp_path: Path, folder: str):
    with pytest.raises(UserError, match=f"run.dir '{folder}' must be an absolute path on storage that all nodes"):
        work(tmp_path, f"run.dir={folder}")


@pytest.mark.parametrize("spelled", ["/shared//run/", "//shared/./run", "/shared/x/../run"])
def test_a_folder_is_known_in_other_spellings(tmp_path: Path, spelled: str):
    assert work(tmp_path, f"run.dir={spelled}").folder == "/shared/run"


def test_an_address_stays_as_it_is(tmp_path: Path):
    assert work(tmp_path, "run.dir=memory://bucket/run/").folder == "memory://bucket/run"


def test_a_changed_setting_of_the_stage_itself_is_refused_here_if_its_folder_is_seen(tmp_path: Path):
    mark_done(parse_config({"run": {"dir": str(tmp_path / "run")}}), ["generate", "label"])
    words = (f"run.dir={tmp_path / 'run'}", "label.judge=exact")
    with pytest.raises(UserError, match="was made with other settings"):
        work(tmp_path, *words, verb="label")
    assert work(tmp_path, *words, "--fresh", verb="label").fresh == "all"
    (tmp_path / "run" / FOLDERS["generate"] / "manifest.json").unlink()  # the job says that this is to be done first
    assert work(tmp_path, *words, verb="label").fresh is None


def test_a_run_without_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"run.dir 'runs/default' must be an absolute path"):
        work(tmp_path)


def test_files_that_the_config_names_are_sent(tmp_path: Path):
    for name in ("train.jsonl", "chat.jinja"):
        (tmp_path / name).write_text("x")
    config = '[problems]\ntrain = "train.jsonl"\ntest = "hf:some/data:test"\n[prompt]\nchat_template = "chat.jinja"\n'
    found = work(tmp_path, SHARED, "import.source=/shared/responses.jsonl", config=config)
    assert found.files == ("run.toml", "train.jsonl", "chat.jinja")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("problems.train=data/none.jsonl", "problems.train 'data/none.jsonl' is not in the working folder"),
        ("problems.test=../none.jsonl", r"problems.test '\.\./none.jsonl' is outside the working folder"),
        ("model.name=models/mine", "model.name 'models/mine' is a folder of this machine, which is not sent"),
        ('select.mix=["models/mine"]', "select.mix 'models/mine' is a folder of this machine"),
        ("serve.models.second=models/mine", "serve.models 'models/mine' is a folder of this machine"),
        ("train.betaa=1", "train.betaa: unknown key"),
    ],
)
def test_what_the_job_would_not_find_is_refused(tmp_path: Path, word: str, message: str):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        work(tmp_path, SHARED, word)


def test_a_stage_that_the_run_does_not_have_is_refused_here(tmp_path: Path):
    with pytest.raises(UserError, match=r"this run has no warmup stage: warmup.enabled is false"):
        work(tmp_path, SHARED, verb="warmup")


def test_a_config_outside_the_working_folder_is_refused(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "run.toml").touch()
    spelled, asked = _parsed("run", [str(tmp_path / "run.toml"), SHARED])
    with pytest.raises(UserError, match=r"run.toml' is outside the working folder .*: choose another --working-dir"):
        read_work("run", spelled, asked, tmp_path / "root")


def test_a_working_folder_behind_a_link_is_the_same_folder(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "run.toml").touch()
    spelled, asked = _parsed("run", [str(tmp_path / "real" / "run.toml"), SHARED])
    assert read_work("run", spelled, asked, tmp_path / "link").files == ("run.toml",)


def test_an_experiment_is_sent_with_its_base_and_needs_a_shared_folder(tmp_path: Path):
    (tmp_path / "base.toml").write_text("")
    (tmp_path / "grid.toml").write_text('base = "base.toml"\n[[variant]]\nname = "ce"\n')
    spelled, asked = _parsed("experiment", [str(tmp_path / "grid.toml"), "--only", "ce", "--dir", "/shared/grid"])
    found = read_work("experiment", spelled, asked, tmp_path)
    assert found.files == ("grid.toml", "base.toml") and found.folder == "/shared/grid"
    assert found.entrypoint == "python -m prm_ray experiment grid.toml --only ce --dir /shared/grid"
    spelled, asked = _parsed("experiment", [str(tmp_path / "grid.toml")])
    with pytest.raises(UserError, match="the experiment's --dir 'runs/grid' must be an absolute path"):
        read_work("experiment", spelled, asked, tmp_path)


def test_a_server_that_is_stopped_has_time_to_answer_those_it_let_in(tmp_path: Path):
    assert work(tmp_path, SHARED, verb="serve").stop_seconds > work(tmp_path, SHARED).stop_seconds + 100
