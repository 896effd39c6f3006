"""What runs of an experiment share is made once, and nothing is ever removed or written through a link."""

from pathlib import Path

import pytest

from prm_ray.errors import UserError
from prm_ray.experiment.grid import Experiment, GridRun
from prm_ray.experiment.sharing import Sharing
from prm_ray.stages.pipeline import check_settings, clear_from
from prm_ray.tables import StageFolder
from tests.unit.test_experiment import experiment, variant

HOT = variant("hot", "set.generate.temperature = 0.5")
ALSO_HOT = variant("also_hot", "set.generate.temperature = 0.5\nset.train.beta = 1")


@pytest.fixture
def grid(tmp_path: Path) -> Experiment:
    return experiment(tmp_path, variant("ce") + HOT + ALSO_HOT)


def finish(run: GridRun, stages: tuple[str, ...], at: str = "noon") -> None:
    """Leave stages as finished ones are, each with a part; the first builds on whatever is before it."""
    for stage in stages:
        folder, all_stages = StageFolder(run.config.run.dir, stage), run.config.stages()
        index = all_stages.index(stage)
        before = {f"{all_stages[index - 1]}.finished_at": at} if index else {}
        folder.begin(run.config.identity(stage) | before)
        (folder.path / "part-00000.parquet").write_text("data")
        folder.finish({"finished_at": at})


def by_name(grid: Experiment) -> dict[str, GridRun]:
    return {run.name: run for run in grid.runs}


def test_a_stage_is_made_by_the_first_run_that_has_its_settings_and_all_before_it(grid: Experiment):
    runs, sharing = by_name(grid), Sharing(grid.runs)
    makers = {name: [sharing.maker(run, stage).name for stage in run.config.stages()] for name, run in runs.items()}
    assert makers["ce-0"] == ["base"] * 3 + ["ce-0"] * 4
    assert makers["hot-0"] == ["hot-0"] * 7
    assert makers["also_hot-0"] == ["hot-0"] * 3 + ["also_hot-0"] * 4


def test_a_run_reads_what_another_made_through_links_and_its_settings_are_still_checked(grid: Experiment):
    runs = by_name(grid)
    finish(runs["base"], ("generate", "label", "reference"))
    Sharing(grid.runs).link_finished(runs["ce-0"])
    links = [StageFolder(runs["ce-0"].config.run.dir, stage) for stage in ("generate", "label", "reference")]
    assert all(link.path.is_symlink() and link.is_done() and link.finished_parts() == [0] for link in links)
    check_settings(runs["ce-0"].config)
    finish(runs["ce-0"], ("train",))
    StageFolder(runs["base"].config.run.dir, "reference").finish({"finished_at": "evening"})
    with pytest.raises(UserError, match=r"reference\.finished_at was 'noon', now 'evening'.*--fresh train"):
        check_settings(runs["ce-0"].config)


def test_fresh_on_a_run_with_links_leaves_what_is_behind_them(grid: Experiment):
    runs = by_name(grid)
    finish(runs["base"], ("generate", "label", "reference"))
    Sharing(grid.runs).link_finished(runs["ce-0"])
    finish(runs["ce-0"], ("train",))
    clear_from(runs["ce-0"].config, "generate")
    assert {path.name for path in runs["ce-0"].config.run.dir.iterdir()} == {"attempts"}
    for stage in ("generate", "label", "reference"):
        folder = StageFolder(runs["base"].config.run.dir, stage)
        assert folder.is_done() and folder.finished_parts() == [0]


def test_a_link_whose_other_end_is_not_finished_is_never_written_through(grid: Experiment):
    runs, sharing = by_name(grid), Sharing(grid.runs)
    finish(runs["base"], ("generate",))
    sharing.link_finished(runs["ce-0"])
    StageFolder(runs["base"].config.run.dir, "generate").manifest_path.unlink()
    folder = StageFolder(runs["ce-0"].config.run.dir, "generate")
    with pytest.raises(UserError, match=r"'.*ce-0/responses' is a link to .*base/responses', which is not finished"):
        folder.begin({})
    sharing.link_finished(runs["ce-0"])
    assert not folder.path.is_symlink()


def test_a_folder_of_its_own_is_not_replaced_by_a_link(grid: Experiment):
    runs = by_name(grid)
    finish(runs["base"], ("generate",))
    finish(runs["ce-0"], ("generate",))
    sharing = Sharing(grid.runs)
    sharing.link_finished(runs["ce-0"])
    assert not StageFolder(runs["ce-0"].config.run.dir, "generate").path.is_symlink()
    assert sharing.maker(runs["ce-0"], "generate").name == "ce-0"


def test_what_is_made_is_found_when_the_file_is_put_in_another_order(tmp_path: Path):
    finish(by_name(experiment(tmp_path, HOT))["hot-0"], ("generate",))
    later = experiment(tmp_path, ALSO_HOT + HOT)
    assert Sharing(later.runs).maker(by_name(later)["also_hot-0"], "generate").name == "hot-0"


def test_a_checkpoint_of_another_run_that_was_made_again_is_noticed(tmp_path: Path):
    runs = by_name(experiment(tmp_path, variant("ce") + variant("two", 'set.reference.model = "{ce}/checkpoint"')))
    finish(runs["base"], ("generate", "label"))
    finish(runs["ce-0"], ("train",))
    Sharing(runs.values()).link_finished(runs["two-0"])
    check_settings(runs["two-0"].config)
    folder = StageFolder(runs["two-0"].config.run.dir, "reference")
    made_with = {"label.finished_at": "noon", "reference.model.finished_at": ["noon"]}
    folder.begin(runs["two-0"].config.identity("reference") | made_with)
    check_settings(runs["two-0"].config)
    StageFolder(runs["ce-0"].config.run.dir, "train").finish({"finished_at": "evening"})
    with pytest.raises(UserError, match=r"reference\.model\.finished_at was \['noon'\], now \['evening'\]"):
        check_settings(runs["two-0"].config)
