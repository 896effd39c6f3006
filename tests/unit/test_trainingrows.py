"""Which runs may be mixed in, and what is read of them: folders made by hand, the reference a tiny model."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.fingerprints import model_fingerprint, row_fingerprint
from prm_ray.parquetfiles import write_parquet
from prm_ray.stages.trainingrows import check_mix, describe, read_test_rows, read_training_rows, sentence
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config

COLUMNS = ["prompt_id", "sample_index", "ref_logprobs"]


def rows_of(problem: str, labels: list[bool | float], model: str, split: str = "train") -> list[dict[str, Any]]:
    prompt = [len(problem), 5]
    return [
        {
            **{"prompt_id": problem, "problem": problem, "split": split, "sample_index": number},
            **{"prompt_tokens": prompt, "response_tokens": [number, 4], "ref_logprobs": [-1.0, -1.0]},
            **{"correct": label > 0.5, "soft_label": label if isinstance(label, float) else None},
            "fingerprint": row_fingerprint(model_fingerprint(model), prompt, [number, 4]),
        }
        for number, label in enumerate(labels)
    ]


def write_run(folder: Path, model: str, parts: list[list[dict[str, Any]]], step_rule: str = "newline") -> Path:
    reference = StageFolder(folder, "reference")
    reference.begin({})
    for number, rows in enumerate(parts):
        reference.write_part(number, rows)
    reference.finish({"identity": {"reference.step_rule": step_rule}})
    return folder


@pytest.fixture
def own(tmp_path: Path, tiny_model: str) -> Path:
    parts = [rows_of("a", [True, False], tiny_model), rows_of("tested", [True], tiny_model, "test")]
    return write_run(tmp_path / "own", tiny_model, parts)


def mixing(own: Path, model: str, *others: Path, **sections: Any) -> RunConfig:
    select = {"mix": [str(other) for other in others]} | sections.pop("select", {})
    return tiny_config(own, model, select=select, **sections)


def test_a_second_runs_responses_join_those_of_the_same_problem_and_add_others(
    own: Path, tmp_path: Path, tiny_model: str
) -> None:
    parts = [rows_of("a", [False], tiny_model), rows_of("b", [True], tiny_model), rows_of("tested", [True], tiny_model)]
    other = write_run(tmp_path / "other", tiny_model, [*parts, rows_of("c", [True], tiny_model, "test")])
    config = mixing(own, tiny_model, other)
    check_mix(config)
    selection = read_training_rows(config, COLUMNS)
    keys = [(row["prompt_id"], row["sample_index"], row["run"]) for row in selection.table.to_pylist()]
    assert keys == [("a", 0, 0), ("a", 1, 0), ("a", 0, 1), ("b", 0, 1)]
    assert describe(config, selection) == {
        "rows_in": {"own": 2, str(other): 3},
        "left_out": {"held_out": 1},
        "rows_out": {"own": 2, str(other): 2},
        "problems_out": 2,
    }
    words = f"2 of 2 responses, 2 of 3 of {other}, to 2 problems; left out: 1 held_out"
    assert sentence(describe(config, selection)) == words
    assert read_test_rows(config, ["prompt_id", "correct"]).to_pylist() == [{"prompt_id": "tested", "correct": True}]


def test_a_run_with_another_reference_is_refused(
    own: Path, tmp_path: Path, tiny_model: str, other_tiny_model: str
) -> None:
    parts = [rows_of("b", [True], tiny_model), rows_of("c", [True], other_tiny_model)]
    config = mixing(own, tiny_model, write_run(tmp_path / "other", tiny_model, parts))
    for read in (check_mix, lambda config: read_training_rows(config, COLUMNS)):
        with pytest.raises(UserError, match=r"select.mix: '.*other' has log-probs of another reference model"):
            read(config)


def test_a_reference_that_the_warm_up_has_yet_to_make_is_compared_once_it_is_there(
    own: Path, tmp_path: Path, tiny_model: str, other_tiny_model: str
) -> None:
    other = write_run(tmp_path / "other", tiny_model, [rows_of("b", [True], tiny_model)])
    config = mixing(own, tiny_model, other, warmup={"enabled": True})
    check_mix(config)
    shutil.copytree(other_tiny_model, own / "warmup")
    StageFolder(own, "warmup").finish({})
    with pytest.raises(UserError, match="another reference model"):
        check_mix(config)


def test_a_run_that_is_not_finished_is_refused(own: Path, tmp_path: Path, tiny_model: str) -> None:
    other = write_run(tmp_path / "other", tiny_model, [rows_of("b", [True], tiny_model)])
    with pytest.raises(UserError, match="not finished; run the reference stage first"):
        check_mix(mixing(own, tiny_model, other, tmp_path / "nowhere"))
    with pytest.raises(UserError, match="not finished; run the score stage first"):
        check_mix(mixing(own, tiny_model, other), COLUMNS, "score")


def test_steps_cut_by_another_rule_are_refused_only_where_steps_are_asked_for(
    own: Path, tmp_path: Path, tiny_model: str
) -> None:
    other = write_run(tmp_path / "other", tiny_model, [rows_of("b", [True], tiny_model)], step_rule="blank_line")
    config = mixing(own, tiny_model, other)
    check_mix(config, COLUMNS)
    with pytest.raises(UserError, match="'blank_line', this run by 'newline'; they must be the same"):
        check_mix(config, ["step_ends"])


def test_the_run_itself_cannot_be_mixed_in(own: Path, tiny_model: str) -> None:
    with pytest.raises(ValueError, match="this run's own folder"):
        mixing(own, tiny_model, own / ".." / own.name)


def test_a_part_written_before_there_were_soft_labels_is_read(own: Path, tiny_model: str) -> None:
    path = StageFolder(own, "reference").part_path(0)
    write_parquet(path, pq.read_table(path).drop_columns("soft_label"))
    assert read_training_rows(mixing(own, tiny_model), ["correct"]).table["correct"].to_pylist() == [True, False]


@pytest.mark.parametrize("objective", ["dpo", "nca", "kto"])
def test_an_objective_that_needs_right_or_wrong_refuses_soft_labels(
    own: Path, tmp_path: Path, tiny_model: str, objective: str
) -> None:
    other = write_run(tmp_path / "other", tiny_model, [rows_of("b", [True, 0.25], tiny_model)])
    sections = {"train": {"objective": objective}, "reference": {"mismatched": 1}}
    with pytest.raises(UserError, match=rf"'{objective}' needs .* 1 training responses .* 0.25: it must be ce or pre"):
        read_training_rows(mixing(own, tiny_model, other, **sections), COLUMNS)


def test_a_run_without_training_responses_is_refused(tmp_path: Path, tiny_model: str) -> None:
    folder = write_run(tmp_path / "run", tiny_model, [rows_of("tested", [True], tiny_model, "test")])
    with pytest.raises(UserError, match="has no training response; nothing to train on"):
        read_training_rows(mixing(folder, tiny_model), COLUMNS)
