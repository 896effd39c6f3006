"""Experiment files: what runs they stand for, in which order, and what a mistake in them is answered with."""

import json
from pathlib import Path

import pytest

from prm_ray.cli import main
from prm_ray.errors import UserError
from prm_ray.experiment.grid import Experiment, load_experiment

BASE = '[run]\ndir = "runs/other"\n[train]\nbeta = 0.3\nlr = 1e-5\n[rerank]\nsizes = [1, 2]\n'


def experiment(tmp_path: Path, text: str, overrides: list[str] | None = None) -> Experiment:
    (tmp_path / "base.toml").write_text(BASE)
    path = tmp_path / "grid.toml"
    path.write_text(f'base = "base.toml"\ndir = "{tmp_path / "runs"}"\n{text}')
    return load_experiment(path, overrides)


def variant(name: str, text: str = "") -> str:
    return f'[[variant]]\nname = "{name}"\n{text}\n'


def test_every_variant_and_seed_is_a_run_of_its_own_with_its_own_settings(tmp_path: Path):
    text = (
        "seeds = [3, 5]\n[common]\ntrain.beta = 0.5\n" + variant("ce") + variant("dpo", 'set.train.objective = "dpo"')
    )
    grid = experiment(tmp_path, text)
    assert [run.name for run in grid.runs] == ["base", "ce-3", "dpo-3", "ce-5", "dpo-5"]
    configs = {run.name: run.config for run in grid.runs}
    assert {str(config.run.dir) for config in configs.values()} == {str(tmp_path / "runs" / name) for name in configs}
    assert [configs[name].train_seed for name in ("base", "ce-3", "dpo-5")] == [0, 3, 5]
    assert {config.run.seed for config in configs.values()} == {0}
    assert [configs[name].train.objective for name in ("base", "ce-3", "dpo-5")] == ["ce", "ce", "dpo"]
    assert all(config.train.beta == 0.5 and config.train.lr == 1e-5 for config in configs.values())


def test_words_of_the_command_line_go_over_the_common_settings_and_under_a_variants_own(tmp_path: Path):
    text = variant("ce") + variant("dpo", "set.train.beta = 0.7")
    grid = experiment(tmp_path, "[common]\ntrain.beta = 0.5\n" + text, ["train.beta=0.6", "train.epochs=2"])
    assert [run.config.train.beta for run in grid.runs] == [0.6, 0.6, 0.7]
    assert {run.config.train.epochs for run in grid.runs} == {2}


def test_an_empty_folder_is_not_taken_for_none(tmp_path: Path):
    experiment(tmp_path, variant("ce"))
    file = tmp_path / "grid.toml"
    with pytest.raises(UserError, match=r"the experiment's folder \(--dir, or dir in its file\) must not be empty"):
        load_experiment(file, folder="")
    file.write_text('base = "base.toml"\ndir = ""\n' + variant("ce"))
    with pytest.raises(UserError, match="must not be empty"):
        load_experiment(file)
    assert load_experiment(file, folder=str(tmp_path)).folder == tmp_path


def test_a_variant_can_go_without_a_value_of_the_base(tmp_path: Path):
    grid = experiment(tmp_path, variant("ce", 'unset = ["train.beta"]'))
    assert "beta" not in grid.runs[1].settings["train"] and grid.runs[0].settings["train"]["beta"] == 0.3
    with pytest.raises(UserError, match=r"variant 'ce': unset 'train\.margin' must be a section\.key"):
        experiment(tmp_path, variant("ce", 'unset = ["train.margin"]'))


def test_a_name_in_braces_is_that_variants_run_with_the_same_seed_and_goes_first(tmp_path: Path):
    second = variant("second", 'set.reference.model = "{ce}/checkpoint"\nset.prompt.template = "{problem}"')
    grid = experiment(tmp_path, "seeds = [0, 1]\n" + second + variant("ce"))
    assert [run.name for run in grid.runs] == ["base", "ce-0", "second-0", "ce-1", "second-1"]
    run = grid.runs[4]
    assert run.config.reference.model == str(tmp_path / "runs" / "ce-1" / "checkpoint") and run.needs == ("ce-1",)
    assert run.config.prompt.template == "{problem}"
    assert [run.name for run in grid.chosen(["second"])] == ["base", "ce-0", "second-0", "ce-1", "second-1"]
    assert [run.name for run in grid.chosen(["ce"])] == ["base", "ce-0", "ce-1"]


def test_data_alone_is_made_once_for_all_seeds_and_not_trained(tmp_path: Path):
    text = variant("weak", "data_only = true\nset.generate.top_p = 0.5")
    grid = experiment(tmp_path, "seeds = [0, 1]\n" + variant("ce", 'set.reference.model = "{weak}/warmup"') + text)
    assert [run.name for run in grid.runs] == ["base", "weak", "ce-0", "ce-1"]
    assert grid.runs[1].stages == ("generate", "label", "reference")
    assert {run.config.reference.model for run in grid.compared} == {str(tmp_path / "runs" / "weak" / "warmup")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (variant("ce", "set.train.betaa = 1"), "variant 'ce': train.betaa: unknown key"),
        (variant("ce", "set.train.lr = -1"), "variant 'ce': train.lr: Input should be greater than 0 (got -1)"),
        (variant("CE"), "variant.0.name: String should match pattern"),
        ("", "variant: Field required"),
        ("seeds = [1, 1]\n" + variant("ce"), "seeds: must be different numbers of at least 0 (got [1, 1])"),
        ("[common]\ntrain.seed = 1\n" + variant("ce"), "common: train.seed is given by the experiment (dir, seeds)"),
        (variant("ce", 'set.run.dir = "x"'), "variant 'ce': run.dir is given by the experiment"),
        (variant("ce") + variant("ce"), "variant 'ce': the name is taken"),
        (variant("base"), "variant 'base': the name is taken"),
        (variant("ce", 'set.reference.model = "{dpo}/x"'), "variant 'ce': {dpo} must name a variant: base, ce"),
        (variant("ce", 'set.reference.model = "{ce}"'), "variants ce need each other, or themselves"),
        (variant("ce") + variant("d", 'data_only = true\nset.reference.model = "{ce}"'), "so {ce} must be too"),
        (variant("ce") + variant("d", 'set.train.start = "{ce}checkpoint"'), "'d': {ce} must stand at the start of a"),
        (variant("ce") + variant("d", 'set.train.start = "/x/{ce}/checkpoint"'), "'d': {ce} must stand at the start"),
        (variant("problem"), "variant 'problem': {problem} stands for a problem in prompt.template"),
        (variant("ce", "sets.train.lr = 1"), "variant.0.sets: unknown key"),
        ('groups.one = "One"\n' + variant("ce", 'group = "two"'), "'ce': group 'two' must be one of [groups]: one"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_variant(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError) as raised:
        experiment(tmp_path, text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_variant_of_no_group_stands_beside_those_that_have_one(tmp_path: Path):
    grid = experiment(tmp_path, 'groups.one = "One"\n' + variant("ce") + variant("dpo", 'group = "one"'))
    assert [grid.groups[run.variant.group] for run in grid.compared] == ["Variants", "One"]


def test_a_name_that_no_variant_has_is_answered_with_those_there_are(tmp_path: Path):
    with pytest.raises(UserError, match="grid has no variant 'cee'; it has base, ce, dpo"):
        experiment(tmp_path, variant("ce") + variant("dpo")).chosen(["cee"])


def test_list_shows_what_is_finished_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    grid = experiment(tmp_path, variant("ce", 'label = "Cross-entropy"'))
    for stage in ("responses", "labels", "reference"):
        folder = grid.runs[0].config.run.dir / stage
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({}))
    main(["experiment", str(tmp_path / "grid.toml"), "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["base", "1/1", "done"]
    assert lines[2].split() == ["ce", "0/1", "done", "Cross-entropy", "(variants)"]
    assert not grid.runs[1].config.run.dir.exists()
