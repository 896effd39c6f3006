"""Order, staleness and manifests, on folders written by hand and with the real rerank stage (which needs no Ray)."""

import json
from pathlib import Path

import pytest

from prm_ray.config import MEASUREMENTS, RunConfig, load_config
from prm_ray.core.rewards import AGGREGATIONS
from prm_ray.errors import NonFiniteLossError, UserError
from prm_ray.settings import ProcessBenchSection
from prm_ray.stages.pipeline import clear_from, known_cause, run_all, run_stage
from prm_ray.tables import StageFolder
from tests.tables_by_hand import mark_done

BEFORE_RERANK = ("generate", "label", "reference", "train", "score")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(tmp_path)


def make_config(tmp_path: Path, *overrides: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n[rerank]\nsizes = [1, 2]\n')
    return load_config(path, list(overrides))


def finish_by_hand(config: RunConfig, stages: tuple[str, ...] = BEFORE_RERANK, at: str = "noon") -> None:
    """Leave each stage's folder as a finished stage does; `scores` holds a problem with a right and a wrong answer."""
    mark_done(config, stages, at)
    if "score" in stages:
        StageFolder(config.run.dir, "score").write_part(0, [score_row(0, "right", 2.0), score_row(1, "wrong", 1.0)])


def score_row(index: int, answer: str, reward: float) -> dict:
    rewards = {f"reward_{how}": reward for how in AGGREGATIONS}
    row = {"prompt_id": "p", "split": "test", "problem": "1 + 1", "gold_answer": "right", "sample_index": index}
    more = {"answer": answer, "correct": answer == "right", "ref_logprobs": [-1.0], "response_tokens": [5]}
    more |= {"policy_logprobs": [-1.0], "step_ends": [1]}
    return row | more | rewards


def test_a_stage_runs_on_what_is_there_and_its_manifest_says_what_came_out(config: RunConfig):
    finish_by_hand(config)
    manifest = run_stage(config, "rerank")
    rows = list(StageFolder(config.run.dir, "rerank").rows())
    best_of_2 = next(row for row in rows if row["method"] == "prm_sum" and row["n"] == 2)
    assert best_of_2["answer"] == "right" and best_of_2["accuracy"] == 1.0
    assert manifest["rows_in"] == 2 and manifest["rows_out"] == len(rows) and manifest["failed"] == {}
    assert manifest["identity"]["score.finished_at"] == "noon"
    assert manifest["versions"]["python"] and manifest["versions"]["torch"] and manifest["code_revision"]
    assert manifest == StageFolder(config.run.dir, "rerank").manifest()


@pytest.mark.parametrize(
    ("overrides", "aggregation"),
    [
        ([], "sum"),
        (["train.reward=value_head"], "last"),
        (["train.reward=value_head", "train.objective=step_ce", "step_label.method=monte_carlo"], "min"),
        (["train.reward=label_token", "train.objective=step_ce", "step_label.method=monte_carlo"], "min"),
        (["score.model=elsewhere", "score.style=value_head"], "last"),
        (["score.model=elsewhere", "score.style=math_shepherd"], "min"),
        (["train.reward=value_head", "evaluate.aggregation=mean"], "mean"),
    ],
)
def test_the_headline_picks_by_what_the_reward_means(tmp_path: Path, overrides: list[str], aggregation: str):
    """The same setting written out makes the same folder, so runs of versions that had to write it go on."""
    config = make_config(tmp_path, *overrides)
    written_out = make_config(tmp_path, *overrides, f"evaluate.aggregation={aggregation}")
    assert config.aggregation == aggregation
    assert config.identity("evaluate") == written_out.identity("evaluate")


def test_a_published_models_search_builds_on_the_problems_that_it_searches(tmp_path: Path):
    """Without a training stage between them it would count as done when the problems are others."""
    config = make_config(tmp_path, "score.model=elsewhere", "score.style=math_shepherd")
    assert config.before("search")[-1] == "reference" and "search" in config.onwards("generate")
    assert config.before("processbench") == () and "processbench" not in config.onwards("generate")
    trained = make_config(tmp_path)
    assert trained.before("search")[-1] == trained.before("processbench")[-1] == "train"


@pytest.mark.parametrize("stage", ["search", "import"])
def test_what_else_changes_a_stage_is_noticed(tmp_path: Path, stage: str):
    """Of other sections: the aggregation that is searched by, the pattern by which imported answers are found."""
    change = {"search": "evaluate.aggregation=min", "import": "label.answer_pattern=(x)"}[stage]
    assert make_config(tmp_path).identity(stage) != make_config(tmp_path, change).identity(stage)


def test_a_default_aggregation_that_is_not_measured_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"'last', the default of reward value_head, must be one of rerank"):
        make_config(tmp_path, "train.reward=value_head", 'rerank.aggregations=["sum"]')


def test_a_finished_stage_is_not_done_again(config: RunConfig):
    finish_by_hand(config)
    first = run_stage(config, "rerank")
    part = StageFolder(config.run.dir, "rerank").part_path(0)
    written = part.stat().st_mtime_ns
    assert run_stage(config, "rerank") == first
    assert part.stat().st_mtime_ns == written


def test_a_stage_before_its_input_names_the_first_missing_stage(config: RunConfig):
    finish_by_hand(config, BEFORE_RERANK[:2])
    with pytest.raises(UserError, match=r"reference' is not finished; run the reference stage first"):
        run_stage(config, "rerank")


def test_a_changed_setting_upstream_is_refused_by_key_and_values(tmp_path: Path):
    finish_by_hand(make_config(tmp_path))
    changed = make_config(tmp_path, "train.beta=0.2")
    for run in (lambda: run_stage(changed, "rerank"), lambda: run_all(changed)):
        with pytest.raises(UserError, match=r"train\.beta was 0\.05, now 0\.2.*--fresh train"):
            run()


def test_a_setting_that_an_older_version_did_not_have_counts_as_its_default(tmp_path: Path):
    config = make_config(tmp_path)
    finish_by_hand(config)
    started = StageFolder(config.run.dir, "train").path / "started.json"
    settings = json.loads(started.read_text())
    del settings["train.cycles"]
    started.write_text(json.dumps(settings))
    assert run_stage(config, "rerank")["rows_out"] > 0
    with pytest.raises(UserError, match=r"train\.cycles was 1, now 2"):
        run_stage(make_config(tmp_path, "train.cycles=2"), "rerank")


def test_how_a_stage_runs_may_change(tmp_path: Path):
    finish_by_hand(make_config(tmp_path))
    manifest = run_stage(make_config(tmp_path, "score.num_workers=3", "train.token_budget=100"), "rerank")
    assert manifest["rows_out"] > 0


def test_results_of_an_upstream_stage_that_was_redone_by_hand_are_noticed(config: RunConfig):
    finish_by_hand(config)
    StageFolder(config.run.dir, "train").finish({"stage": "train", "finished_at": "evening"})
    with pytest.raises(UserError, match=r"train\.finished_at was 'noon', now 'evening'.*--fresh score"):
        run_stage(config, "rerank")


def test_a_stage_that_failed_goes_on_with_the_parts_it_has(config: RunConfig):
    finish_by_hand(config)
    run_stage(config, "rerank")
    folder = StageFolder(config.run.dir, "rerank")
    folder.manifest_path.unlink()
    part = folder.part_path(0).stat().st_mtime_ns
    assert run_stage(config, "rerank")["resumed"]
    assert folder.part_path(0).stat().st_mtime_ns == part


@pytest.mark.parametrize("inside", ["run", "run/deeper"])
def test_a_file_in_the_place_of_a_run_is_named(tmp_path: Path, inside: str):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=rf"run.dir must be a folder, and '{tmp_path}/run' is a file"):
        run_stage(make_config(tmp_path, f"run.dir={tmp_path / inside}"), "generate")


def test_a_file_in_the_place_of_a_table_is_named(config: RunConfig):
    finish_by_hand(config)
    StageFolder(config.run.dir, "rerank").path.touch()
    with pytest.raises(UserError, match=r"picks' must be a folder, and is a file: move it away"):
        run_stage(config, "rerank")


def test_fresh_removes_the_stage_and_all_later_ones_only(config: RunConfig):
    finish_by_hand(config)
    run_stage(config, "rerank")
    clear_from(config, "train")
    left = {stage for stage in config.stages() if StageFolder(config.run.dir, stage).path.exists()}
    assert left == {"generate", "label", "reference"}


def test_fresh_removes_nothing_if_an_earlier_stage_has_other_settings(tmp_path: Path):
    finish_by_hand(make_config(tmp_path))
    with pytest.raises(UserError, match=r"generate\.temperature was 1\.0, now 0\.5"):
        clear_from(make_config(tmp_path, "generate.temperature=0.5"), "train")
    assert StageFolder(tmp_path / "run", "score").is_done()


def test_fresh_after_a_changed_setting_leads_on(tmp_path: Path):
    finish_by_hand(make_config(tmp_path))
    changed = make_config(tmp_path, "rerank.sizes=[2]")
    clear_from(changed, "rerank")
    assert run_stage(changed, "rerank")["rows_out"] > 0


def test_a_measurement_needs_the_stage_it_builds_on_and_no_later_one(config: RunConfig):
    finish_by_hand(config, BEFORE_RERANK[:3])
    with pytest.raises(UserError, match=r"checkpoint' is not finished; run the train stage first"):
        run_stage(config, "processbench")
    mark_done(config, BEFORE_RERANK[:4])
    with pytest.raises(UserError, match=r"processbench.source 'nowhere' must be a folder"):
        run_stage(config.model_copy(update={"processbench": ProcessBenchSection(source="nowhere")}), "processbench")


def test_a_measurement_goes_with_the_stage_it_builds_on_and_takes_nothing_along(config: RunConfig):
    finish_by_hand(config)
    for name in MEASUREMENTS:
        StageFolder(config.run.dir, name).path.mkdir()
    clear_from(config, "processbench")
    assert StageFolder(config.run.dir, "policy").path.is_dir() and StageFolder(config.run.dir, "score").is_done()
    clear_from(config, "score")
    assert StageFolder(config.run.dir, "policy").path.is_dir()
    clear_from(config, "train")
    assert not StageFolder(config.run.dir, "policy").path.exists()


def test_the_import_stage_exists_only_with_a_source(tmp_path: Path):
    with pytest.raises(UserError, match=r"no import stage: import\.source is not set"):
        clear_from(make_config(tmp_path), "import")
    imported = make_config(tmp_path, "import.source=x.jsonl")
    with pytest.raises(UserError, match=r"no label stage: import\.source is set"):
        run_stage(imported, "label")


@pytest.mark.parametrize("kind", [UserError, NonFiniteLossError])
def test_a_known_failure_is_found_in_the_traceback_ray_keeps(kind: type[Exception]):
    text = f"ray::Worker()\n  File 'x.py', line 3\nprm_ray.errors.{kind.__name__}: loss nan: lower train.lr\n\nmore"
    cause = known_cause(RuntimeError(text))
    assert type(cause) is kind and str(cause) == "loss nan: lower train.lr"
    assert known_cause(RuntimeError("CUDA out of memory")) is None
