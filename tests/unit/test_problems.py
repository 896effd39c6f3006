import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.problems import Problem, check_problems, load_problems

ROWS = [
    {"question": "1 + 1?", "solved": "One and one.\n#### 2"},
    {"question": "2 + 2?", "solved": "Two and two.\n#### 4"},
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path | str, **settings: Any) -> list[Problem]:
    section = {"train": str(path), "problem_field": "question", "answer_field": "solved", **settings}
    return load_problems(RunConfig.model_validate({"problems": section}), "train")


def test_answer_pattern_takes_the_gold_answer_out_of_its_field(tmp_path: Path):
    problems = load(write_jsonl(tmp_path / "p.jsonl", ROWS), answer_pattern=r"####\s*(.+)")
    assert [(problem.problem, problem.answer, problem.error) for problem in problems] == [
        ("1 + 1?", "2", None),
        ("2 + 2?", "4", None),
    ]


def test_parquet_and_jsonl_give_the_same_problems_and_ids(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    from_json = load(write_jsonl(tmp_path / "p.jsonl", ROWS))
    assert load(tmp_path / "p.parquet") == from_json
    assert len({problem.prompt_id for problem in from_json}) == 2
    assert from_json[0].prompt_id == Problem("1 + 1?", "another answer", row=9).prompt_id


def test_num_train_takes_the_first_problems(tmp_path: Path):
    assert len(load(write_jsonl(tmp_path / "p.jsonl", ROWS), num_train=1)) == 1


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"file '.*absent.jsonl' does not exist"):
        load(tmp_path / "absent.jsonl")


def test_a_missing_field_is_named_with_the_fields_there_are(tmp_path: Path):
    with pytest.raises(UserError, match=r"row 1 of .* has no field 'problem'; it has question, solved"):
        load(write_jsonl(tmp_path / "p.jsonl", ROWS), problem_field="problem")


def test_an_empty_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no rows"):
        load(write_jsonl(tmp_path / "p.jsonl", []))


def test_a_duplicate_problem_is_refused_with_both_rows(tmp_path: Path):
    with pytest.raises(UserError, match=r"same problem in rows 1 and 3: '1 \+ 1\?'"):
        load(write_jsonl(tmp_path / "p.jsonl", [*ROWS, ROWS[0]]))


def test_a_malformed_line_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + '{"question": "2 + 2?", "sol\n')
    with pytest.raises(UserError, match=r"line 2 of '.*p.jsonl' is not valid JSON"):
        load(path)


def test_a_line_that_is_no_object_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"line 1 of .* must be a JSON object"):
        load(write_jsonl(tmp_path / "p.jsonl", [[1, 2]]))


def test_a_truncated_parquet_file_is_refused(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    content = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "p.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        load(tmp_path / "p.parquet")


def test_null_problems_and_answers_stay_as_error_rows(tmp_path: Path):
    rows = [
        ROWS[0],
        {"question": None, "solved": "1"},
        {"question": None, "solved": "1"},
        {"question": "3?", "solved": None},
    ]
    problems = load(write_jsonl(tmp_path / "p.jsonl", rows))
    assert [problem.error for problem in problems] == [
        None,
        "null_problem: row 2",
        "null_problem: row 3",
        "null_answer: row 4",
    ]
    assert len({problem.prompt_id for problem in problems}) == 4


def test_an_answer_without_a_match_of_the_pattern_is_an_error_row(tmp_path: Path):
    problems = load(
        write_jsonl(tmp_path / "p.jsonl", [{"question": "1?", "solved": "no mark"}]), answer_pattern="#### (.+)"
    )
    assert problems[0].error == "null_answer: row 1"


@pytest.mark.parametrize("source", ["problems.csv", "hf:only-a-name:train", "nonsense"])
def test_an_unknown_kind_of_source_is_refused(source: str):
    with pytest.raises(UserError, match=r"must (be|have)"):
        load(source)


def test_a_problem_in_both_splits_is_refused(tmp_path: Path):
    held_out = write_jsonl(tmp_path / "test.jsonl", [{"question": "3?", "solved": "3"}, ROWS[1]])
    section = {"train": str(write_jsonl(tmp_path / "train.jsonl", ROWS)), "test": str(held_out)}
    section |= {"problem_field": "question", "answer_field": "solved"}
    both = RunConfig.model_validate({"problems": section})
    with pytest.raises(UserError, match=r"1 test problems are training problems too, the first is '2 \+ 2\?'"):
        check_problems(both)
    check_problems(RunConfig.model_validate({"problems": section | {"num_train": 1}}))


def test_what_is_not_used_is_not_read(tmp_path: Path):
    path = write_jsonl(tmp_path / "p.jsonl", ROWS)
    path.write_text(path.read_text() + "no JSON")
    assert len(load(path, num_train=2)) == 2
    with pytest.raises(UserError, match=r"line 3 of .* is not valid JSON"):
        load(path, num_train=3)


def test_of_several_that_are_there_twice_the_first_to_come_again_is_named(tmp_path: Path):
    texts = ["a", "b", "c", "c", "a", "b"]
    path = write_jsonl(tmp_path / "p.jsonl", [{"question": text, "solved": "1"} for text in texts])
    with pytest.raises(UserError, match=r"same problem in rows 3 and 4: 'c'"):
        load(path)
