import json
from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.stages.import_ import assign_splits, check, load_rollouts, make_rows, run
from prm_ray.tables import StageFolder

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "gpt3_responses.jsonl"


def config_for(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> RunConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"run": {"dir": tmp_path / "run"}, "import": {"source": str(path), **settings}}
    return RunConfig.model_validate(data)


def nested(number: int, **changes: Any) -> dict[str, Any]:
    responses = [
        {"generator": "a", "text": f"  {number} apples\nA: {number}\n", "correct": True},
        {"generator": "b", "text": "A: 0", "correct": False},
    ]
    return {"problem": f"{number}?", "gold_answer": str(number), "responses": responses, **changes}


def imported(config: RunConfig) -> list[dict[str, Any]]:
    folder = StageFolder(config.run.dir, "import")
    folder.begin({})
    run(config, folder)
    return list(folder.rows())


def test_a_row_a_problem_becomes_a_row_a_response_with_its_text_untouched(tmp_path: Path):
    config = config_for(tmp_path, [nested(number) for number in range(10)], preset="gsm8k_gpt3", num_test=3)
    rows = imported(config)
    assert len(rows) == 20 and len({(row["prompt_id"], row["sample_index"]) for row in rows}) == 20
    first = next(row for row in rows if row["problem"] == "7?" and row["sample_index"] == 0)
    assert first["text"] == "  7 apples\nA: 7\n" and first["correct"] is True and first["answer"] == "7"
    assert first["generator"] == "a" and first["response_tokens"] is None and first["messages"][-1]["content"] == "7?"
    splits = {row["problem"]: row["split"] for row in rows}
    assert sorted(splits.values()) == ["test"] * 3 + ["train"] * 7


def test_flat_rows_of_one_problem_are_gathered(tmp_path: Path):
    rows = [{"q": f"{number % 2}?", "text": str(number), "correct": number > 2} for number in range(4)]
    problems = load_rollouts(config_for(tmp_path, rows, fields={"problem": "q"}).import_)
    assert [[one.text for one in rollouts.responses] for rollouts in problems] == [["0", "2"], ["1", "3"]]


def test_rollouts_keep_completions_and_join_steps_where_there_is_none(tmp_path: Path):
    row = {
        "dataset": "gsm8k",
        "prompt": "1?",
        "completions": ["Step 1: a\n\nStep 2: b", None],
        "steps": [["Step 1: a", "Step 2: b"], ["Step 1: c", "Step 2: d"]],
        "correctness": [True, False],
        "reference": "1",
    }
    (rollouts,) = load_rollouts(config_for(tmp_path, [row], preset="implicit_prm_rollouts").import_)
    assert [one.text for one in rollouts.responses] == ["Step 1: a\n\nStep 2: b", "Step 1: c\n\nStep 2: d"]
    assert [one.correct for one in rollouts.responses] == [True, False] and rollouts.gold_answer == "1"


@pytest.mark.parametrize("label", [None, 2, "true", "0.5", -0.1, 1.01, float("nan")])
def test_a_label_that_is_neither_true_or_false_nor_a_chance_is_counted_and_never_wrong(tmp_path: Path, label: Any):
    response = {"generator": "a", "text": "A: 1", "correct": label}
    config = config_for(tmp_path, [nested(1, responses=[response]), nested(2)], preset="gsm8k_gpt3")
    bad = next(row for row in imported(config) if row["problem"] == "1?")
    assert bad["correct"] is None and bad["label_error"].startswith("bad_label: ")


def test_responses_without_text_and_problems_without_responses_stay_as_error_rows(tmp_path: Path):
    rows = [
        nested(1, responses=[]),
        nested(2, responses=[{"text": None, "correct": True}, {"text": "", "correct": True}]),
    ]
    config = config_for(tmp_path, rows, preset="gsm8k_gpt3")
    found = [row["error"] for rollouts in load_rollouts(config.import_) for row in make_rows(rollouts, "train", config)]
    assert found == ["no_responses", "no_text", "empty_response"]


def test_the_split_of_the_file_is_kept(tmp_path: Path):
    section = config_for(tmp_path, [nested(1, split="test"), nested(2, split="train")], preset="gsm8k_gpt3").import_
    assert assign_splits(load_rollouts(section), section, 0) == {"1?": "test", "2?": "train"}


def test_a_split_is_the_same_every_time_and_another_for_another_seed(tmp_path: Path):
    section = config_for(tmp_path, [nested(number) for number in range(40)], preset="gsm8k_gpt3").import_
    problems = load_rollouts(section)
    first = assign_splits(problems, section, 0)
    assert first == assign_splits(list(reversed(problems)), section, 0) != assign_splits(problems, section, 1)
    assert list(first.values()).count("test") == 4


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([nested(1, split="dev")], {"preset": "gsm8k_gpt3"}, "split 'dev'"),
        ([nested(1), nested(1)], {"preset": "gsm8k_gpt3"}, "row 2 .* same problem as an earlier row"),
        ([nested(1)], {"preset": "flat"}, "has no field 'text'; it has gold_answer, problem, responses"),
        ([nested(1, responses="x")], {"preset": "gsm8k_gpt3"}, "responses must be a list"),
        ([nested(1, problem=None)], {"preset": "gsm8k_gpt3"}, "problem is None"),
        ([nested(1)], {"preset": "gsm8k_gpt3", "fields": {"txt": "x"}}, "import.fields: txt is not a field"),
        ([nested(1), nested(2)], {"preset": "gsm8k_gpt3", "num_train": 5, "num_test": 5}, "holds 2 problems, too few"),
        ([], {}, "holds no rows"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path: Path, rows: list[Any], settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        imported(config_for(tmp_path, rows, **settings))


@pytest.mark.parametrize(("settings", "split"), [({"num_train": 3}, "test"), ({}, None)])
def test_an_import_without_held_out_problems_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], split: str | None
):
    said = list[str]()
    monkeypatch.setattr("prm_ray.stages.import_.log.warning", lambda text, *words: said.append(text % words))
    check(config_for(tmp_path, [nested(number) for number in range(3)], preset="gsm8k_gpt3", **settings))
    expected = [f"in the split {split}, so score, rerank and evaluate will have nothing"] if split else []
    assert len(said) == len(expected) and all(each in line for each, line in zip(expected, said, strict=True))


def test_a_second_start_keeps_the_parts_that_are_there(tmp_path: Path):
    config = config_for(tmp_path, [nested(number) for number in range(300)], preset="gsm8k_gpt3")
    rows = imported(config)
    folder = StageFolder(config.run.dir, "import")
    folder.part_path(1).unlink()
    before = folder.part_path(0).stat().st_mtime_ns
    assert imported(config) == rows and folder.part_path(0).stat().st_mtime_ns == before


@pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K responses are not on this machine")
def test_real_responses_import_completely(tmp_path: Path):
    data = {"run": {"dir": tmp_path}, "import": {"source": str(GSM8K), "preset": "gsm8k_gpt3"}}
    rows = imported(RunConfig.model_validate(data))
    assert len(rows) == 3600 and not any(row["error"] or row["label_error"] for row in rows)
    assert 0.37 < sum(row["correct"] for row in rows) / 3600 < 0.39
    assert sum(row["answer"] is not None for row in rows) > 3500
