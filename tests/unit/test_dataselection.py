"""Which rows `[select]` keeps, on tables made by hand: a row is (problem, sample number, label, tokens)."""

from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_ray.dataselection import Selection, ngrams, select
from prm_ray.errors import UserError
from prm_ray.schemas import REFERENCE
from prm_ray.settings import SelectSection


def row(problem: str, sample: int, label: bool | float | None = True, num_tokens: int = 3, **more: Any) -> dict:
    is_soft = isinstance(label, float)
    return {
        "prompt_id": f"id of {problem}",
        "problem": problem,
        "prompt_tokens": [len(problem)] * 2,
        "sample_index": sample,
        "response_tokens": [7] * num_tokens,
        "correct": label > 0.5 if is_soft else label,
        "soft_label": label if is_soft else None,
        **more,
    }


def labelled(problem: str, *labels: bool | float | None) -> list[dict]:
    return [row(problem, sample, label) for sample, label in enumerate(labels)]


def chosen(*runs: list[dict], held_out: tuple[str, ...] = (), seed: int = 0, **section: Any) -> Selection:
    tables = [pa.Table.from_pylist(rows, schema=REFERENCE) for rows in runs]
    section |= {"mix": [f"/other/{number}" for number in range(1, len(runs))]}
    return select(tables, {f"id of {text}": text for text in held_out}, SelectSection(**section), seed)


def names(selection: Selection) -> list[str]:
    """`a0` = the first response to problem a; those of a mixed-in run end in its number."""
    return [
        f"{one['problem']}{one['sample_index']}" + (f"/{one['run']}" if one["run"] else "")
        for one in selection.table.to_pylist()
    ]


FOUR = [
    *labelled("a", True, True),
    *labelled("b", True, False),
    *labelled("c", False, False),
    *labelled("d", None, 0.3),
]
"""All right, mixed, all wrong, and one that is not judged beside a soft label."""


def test_by_default_every_response_with_a_label_stays_in_its_place():
    selection = chosen([*FOUR, row("e", 0, error="too_long: 9 tokens")])
    assert names(selection) == ["a0", "a1", "b0", "b1", "c0", "c1", "d1"]
    assert selection.left_out == {"failed": 1, "unjudged": 1}
    assert (selection.rows_in, selection.rows_out, selection.num_problems) == ([9], [7], 4)


@pytest.mark.parametrize(
    ("section", "kept", "left_out"),
    [
        ({"min_accuracy": 0.2, "max_accuracy": 0.8}, "b0 b1 d1", {"min_accuracy": 2, "max_accuracy": 2}),
        ({"min_accuracy": 0.5, "max_accuracy": 0.5}, "b0 b1", {"min_accuracy": 3, "max_accuracy": 2}),
        ({"max_accuracy": 0.3}, "c0 c1 d1", {"max_accuracy": 4}),
        ({"num_responses": 1}, "a0 b0 c0", {"num_responses": 4}),
        ({"num_responses": 1, "max_accuracy": 0.5}, "c0", {"num_responses": 4, "max_accuracy": 2}),
    ],
    ids=["PRIME's interval", "an interval has its ends", "a soft label counts as it is", "d0 not replaced", "both"],
)
def test_problems_by_their_mean_label_and_responses_by_their_number(section: dict, kept: str, left_out: dict):
    selection = chosen(FOUR, **section)
    assert names(selection) == kept.split()
    assert selection.left_out == {"unjudged": 1, **left_out}


def test_responses_by_length_and_by_whether_they_were_cut():
    reasons = ["stop", "length", None, "stop"]
    rows = [row("a", n, n % 2 == 0, 2 + n, finish_reason=why) for n, why in enumerate(reasons)]  # 2, 3, 4, 5 tokens
    assert names(chosen(rows, drop_truncated=True)) == ["a0", "a2", "a3"]
    both = chosen(rows, drop_truncated=True, min_response_tokens=4, max_response_tokens=4)
    assert names(both) == ["a2"]
    assert both.left_out == {"drop_truncated": 1, "min_response_tokens": 1, "max_response_tokens": 1}
    rows += [row("b", 0, prompt_tokens=[1] * 9)]
    assert names(chosen(rows, max_prompt_tokens=8)) == ["a0", "a1", "a2", "a3"]


def test_words_of_an_ngram_are_lower_case_and_without_punctuation_of_prose():
    assert ngrams("Tom's 3 apples, sold.", 3) == {"tom s 3", "s 3 apples", "3 apples sold"}
    assert ngrams("2+3", 2) == {"2 +", "+ 3"}
    assert ngrams("2+3", 8) == {"2 + 3"} != ngrams("2-3", 8)
    assert ngrams("...", 8) == set()


def test_a_problem_that_shares_an_ngram_with_a_held_out_or_an_earlier_one_is_left_out():
    texts = ["Tom eats two red apples", "Ann eats TWO RED apples!", "Ann has two red pears", "Joe sees it"]
    rows = [row(text, 0, number % 2 == 0) for number, text in enumerate(texts)]
    selection = chosen(rows, held_out=("So Ann has two cats",), ngram=3)
    assert names(selection) == ["Tom eats two red apples0", "Joe sees it0"]
    assert selection.left_out == {"ngram_held_out": 1, "ngram_training": 1}
    assert chosen(rows, ngram=5).left_out == {}


def many(num_problems: int = 40) -> list[dict]:
    return [one for number in range(num_problems) for one in labelled(f"p{number}", True, False)]


def test_a_smaller_share_of_the_problems_is_part_of_a_larger_one():
    shares = [set(names(chosen(many(), problem_share=share))) for share in (0.25, 0.5, 0.75, 1.0)]
    assert [len(each) for each in shares] == [20, 40, 60, 80]
    assert shares[0] < shares[1] < shares[2] < shares[3]
    assert shares[0] == set(names(chosen(many(), num_problems=10)))
    assert shares[0] != set(names(chosen(many(), num_problems=10, seed=1)))


def test_the_share_is_taken_of_what_the_filters_leave():
    rows = [*many(8), *labelled("easy", True, True)]
    selection = chosen(rows, max_accuracy=0.5, problem_share=0.5)
    assert selection.num_problems == 4
    assert selection.left_out == {"max_accuracy": 2, "problem_share": 8}


def test_a_problem_that_two_runs_have_is_one_group_and_its_accuracy_is_of_both():
    selection = chosen(
        labelled("a", True, True), [*labelled("a", False, False), *labelled("b", True)], max_accuracy=0.5
    )
    assert names(selection) == ["a0", "a1", "a0/1", "a1/1"]
    assert (selection.rows_in, selection.rows_out) == ([2, 3], [2, 2])


def test_what_is_mixed_in_is_limited_in_problems_and_never_held_out_or_behind_another_prompt():
    own = many(4)
    other = [*many(2), *[one for n in range(8) for one in labelled(f"new{n}", True, False)], *labelled("tested", True)]
    other[0] |= {"prompt_tokens": [1, 2, 3]}
    selection = chosen(own, other, held_out=("tested",), mix_share=0.5)
    assert selection.left_out == {"held_out": 1, "other_prompt": 1, "mix_share": 12}
    assert names(selection)[:11] == [*names(chosen(own)), "p01/1", "p10/1", "p11/1"]
    assert selection.num_problems == 4 + 2


@pytest.mark.parametrize(
    ("rows", "section", "message"),
    [
        (FOUR, {"min_response_tokens": 9}, "select.min_response_tokens = 9 leaves out the last 7 training responses"),
        (labelled("a", True), {"max_accuracy": 0.9}, r"select.max_accuracy = 0.9 .* \(left out before: none\)"),
        (FOUR[:2], {"num_responses": 1, "max_accuracy": 0.9}, r"the last 1 .* \(left out before: 1 num_responses\)"),
        (labelled("held out", True), {"ngram": 2}, "select.ngram = 2 leaves out the last 1"),
        ([row("a", 0, None)], {}, "a missing label leaves out the last 1"),
    ],
)
def test_if_nothing_is_left_one_line_says_which_filter_took_the_rest(rows: list[dict], section: dict, message: str):
    with pytest.raises(UserError, match=message):
        chosen(rows, held_out=("is held out here",), **section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"min_accuracy": 0.8, "max_accuracy": 0.2}, "min_accuracy 0.8 must not exceed max_accuracy 0.2"),
        ({"min_response_tokens": 9, "max_response_tokens": 8}, "min_response_tokens 9 must not exceed"),
        ({"num_problems": 5, "problem_share": 0.5}, "set only one"),
        ({"mix_share": 0.5}, "needs run folders in mix"),
        ({"mix": ["runs/a", "runs/b/../a"]}, "twice"),
        ({"problem_share": 0.0}, "greater than 0"),
        ({"max_accuracy": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_hold_together_are_refused(section: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SelectSection(**section)


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([True, False, None, 0.3]), st.integers(1, 4)), max_size=24
)
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "num_responses": st.integers(1, 3),
        "min_response_tokens": st.integers(1, 3),
        "max_accuracy": st.floats(0.3, 1),
        "ngram": st.integers(1, 2),
        "problem_share": st.floats(0.1, 1),
        "mix_share": st.floats(0.1, 2),
    },
)


@settings(deadline=None, max_examples=60)
@given(own=ROWS, other=ROWS, section=SECTIONS)
def test_a_selection_never_invents_or_doubles_a_row_and_accounts_for_each(own: list, other: list, section: dict):
    runs = []
    for rows in (own, other):
        number = {text: count() for text, *_ in rows}
        runs.append([row(text, next(number[text]), *rest) for text, *rest in rows])
    try:
        selection = chosen(*runs, held_out=("f",), **section)
    except UserError:
        return
    there = {(number, one["problem"], one["sample_index"]) for number, rows in enumerate(runs) for one in rows}
    kept = [(one["run"], one["problem"], one["sample_index"]) for one in selection.table.to_pylist()]
    assert len(set(kept)) == len(kept) and set(kept) <= there
    assert sum(selection.rows_out) + sum(selection.left_out.values()) == len(there)
    assert all(one["correct"] is not None and one["problem"] != "f" for one in selection.table.to_pylist())
