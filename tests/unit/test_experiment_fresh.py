"""`--fresh` of an experiment: what is removed of which runs, and nothing where the command could not go on then."""

import json
from pathlib import Path

import pytest

from prm_ray.cli import main
from prm_ray.errors import UserError
from prm_ray.experiment.execute import run_experiment
from prm_ray.experiment.grid import Experiment, load_experiment
from prm_ray.experiment.sharing import Sharing
from prm_ray.stages import pipeline
from prm_ray.tables import StageFolder
from tests.tables_by_hand import mark_done

GRID = 'base = "base.toml"\ndir = "{folder}/runs"\n[[variant]]\nname = "ce"\n[[variant]]\nname = "dpo"\n'


@pytest.fixture
def made(tmp_path: Path) -> Experiment:
    """Two variants that share all up to `reference` with the base; everything finished."""
    (tmp_path / "base.toml").write_text("")
    (tmp_path / "grid.toml").write_text(GRID.replace("{folder}", str(tmp_path)))
    grid = load_experiment(tmp_path / "grid.toml")
    base, *variants = grid.runs
    mark_done(base.config, base.stages)
    for run in variants:
        Sharing(grid.runs).link_finished(run)
        mark_done(run.config, run.stages[len(base.stages) :], after=base.stages[-1])
    return grid


def redo(grid: Experiment, monkeypatch: pytest.MonkeyPatch, stage: str, only: tuple[str, ...] = ()) -> list[str]:
    """The stages that are run again; running one leaves its folder finished."""
    made: list[str] = []

    def run_stage(config, name):
        if not StageFolder(config.run.dir, name).is_done():
            made.append(f"{config.run.dir.name} {name}")
            mark_done(config, (name,), at="later")

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    monkeypatch.setattr("prm_ray.experiment.execute.start_ray", lambda config: None)
    monkeypatch.setattr(pipeline, "check_inputs", lambda config, stages: None)
    monkeypatch.setattr("prm_ray.experiment.execute.compare_runs", lambda *args, **more: None)
    run_experiment(grid, only, stage)
    return made


def test_a_shared_stage_is_redone_once_and_all_that_builds_on_it(
    made: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = ["train", "score", "rerank", "evaluate"]
    expected = ["base reference", *(f"{run} {stage}" for run in ("ce-0", "dpo-0") for stage in after)]
    assert redo(made, monkeypatch, "reference") == expected


def test_one_variant_is_redone_alone(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert redo(made, monkeypatch, "score", ("dpo",)) == ["dpo-0 score", "dpo-0 rerank", "dpo-0 evaluate"]


@pytest.mark.parametrize(
    ("stage", "only", "settings", "message"),
    [
        ("reference", ("ce",), [], "ce-0 shares this stage with base, dpo-0; leave out --only"),
        ("warmup", (), [], "--fresh warmup: no run that was asked for has this stage"),
        ("train", (), ["problems.num_train=7"], r"redo from here on with --fresh generate"),
    ],
)
def test_what_could_not_go_on_removes_nothing(
    made: Experiment, tmp_path: Path, stage: str, only: tuple[str, ...], settings: list[str], message: str
) -> None:
    grid = load_experiment(tmp_path / "grid.toml", settings)
    with pytest.raises(UserError, match=message):
        run_experiment(grid, only, stage)
    assert all(StageFolder(run.config.run.dir, each).is_done() for run in grid.runs for each in run.stages)


def test_a_stage_verb_redoes_its_own_stage_only(made: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.runs[1].config.run.dir
    (folder / "config.json").write_text(json.dumps({"run": {"dir": str(folder)}}))
    with pytest.raises(SystemExit) as ended:
        main(["rerank", str(folder / "config.json"), "--fresh", "train"])
    assert ended.value.code == 2
    message = "--fresh train: rerank redoes its own stage only; prm-ray run redoes from train on"
    assert message in capsys.readouterr().err
    assert StageFolder(folder, "train").is_done()
