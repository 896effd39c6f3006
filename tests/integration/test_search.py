"""The search stage on Ray with tiny models: every candidate in the table once, scored as the Scorer scores it."""

from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import write_prm_json
from prm_ray.scorer import Scorer
from prm_ray.stages import pipeline
from prm_ray.tables import StageFolder
from tests.tables_by_hand import mark_done, tiny_config, write_reference_texts
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("ray_local")
NUM_PROBLEMS = 6


def trained(run_dir: Path, model: str, **search: Any) -> RunConfig:
    """A run that ends with a trained model of random weights, with held-out problems to search."""
    settings = {"sizes": [8], "expand": 4, "responses_per_generator": 16} | search
    config = tiny_config(run_dir, model, generate={"max_tokens": 24}, search=settings)
    problems = [{"problem": f"{n}+{n}", "text": "1\n2", "split": "test"} for n in range(NUM_PROBLEMS)]
    stages = config.before("search")
    mark_done(config, stages[: stages.index("reference")])
    folder = write_reference_texts(config, [problems[:3], problems[3:]])
    folder.begin(config.identity("reference") | {"label.finished_at": "noon"})
    folder.finish({"stage": "reference", "finished_at": "noon", "seconds": 1.0})
    mark_done(config, ["train"], after="reference")
    checkpoint = StageFolder(run_dir, "train").path
    save_tiny_model(checkpoint, seed=5)
    facts = {"objective": "ce", "beta": 0.5, "reference": model, "step_rule": "newline", "with_reference": True}
    write_prm_json(checkpoint, facts)
    return config


@pytest.fixture(scope="module")
def searched(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = trained(
        tmp_path_factory.mktemp("search"), tiny_model, strategies=["best_of_n"], num_generators=2, num_scorers=2
    )
    pipeline.run_stage(config, "search")
    return config


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    return list(StageFolder(config.run.dir, "search").rows())


def whole(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[int]:
    """All tokens of a candidate, its parents' first."""
    if row["parent"] == -1:
        return row["tokens"]
    same = ("prompt_id", "strategy", "size")
    (parent,) = [one for one in rows if one["candidate"] == row["parent"] and all(one[key] == row[key] for key in same)]
    return whole(rows, parent) + row["tokens"]


def test_every_candidate_is_in_the_table_once(searched: RunConfig):
    rows = rows_of(searched)
    keys = {(row["prompt_id"], row["strategy"], row["size"], row["candidate"]) for row in rows}
    assert len(keys) == len(rows) == NUM_PROBLEMS * 8
    assert all(row["error"] is None and row["finish_reason"] in ("stop", "length") for row in rows)


def test_rewards_in_the_table_are_the_scorers_own(searched: RunConfig):
    rows = rows_of(searched)
    scorer = Scorer.from_pretrained(StageFolder(searched.run.dir, "train").path, dtype="float32")
    for row in rows[::5]:
        (scored,) = scorer.score(row["problem"], [whole(rows, row)])
        assert row["step_rewards"] == pytest.approx(scored.step_rewards, abs=1e-4)
        assert row["value"] == pytest.approx(scored.rewards["sum"], abs=1e-4)


def test_a_second_start_does_nothing(searched: RunConfig):
    before = rows_of(searched)
    pipeline.run_stage(searched, "search")
    assert rows_of(searched) == before


def test_a_search_that_was_cut_off_does_only_what_is_missing(searched: RunConfig):
    folder = StageFolder(searched.run.dir, "search")
    rows = rows_of(searched)
    kept = [row for row in rows if row["prompt_id"] != rows[0]["prompt_id"]]
    for index in folder.finished_parts():
        folder.part_path(index).unlink()
    folder.write_part(0, kept)
    folder.manifest_path.unlink()
    pipeline.run_stage(searched, "search")
    assert folder.read_part(0) == kept
    assert {row["prompt_id"] for row in rows_of(searched)} == {row["prompt_id"] for row in rows}
    assert len(rows_of(searched)) == len(rows)


def test_a_run_without_a_trained_model_is_told_what_is_missing(tiny_model: str, tmp_path: Path):
    config = tiny_config(tmp_path, tiny_model)
    with pytest.raises(UserError, match="run the generate stage first"):
        pipeline.run_stage(config, "search")
