import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prm_ray.answers import Judge, Judgement
from prm_ray.errors import UserError
from prm_ray.finalanswers import choice_answer, exact_answer, final_answer, vote_answer
from prm_ray.settings import LabelSection

OWN_JUDGE = """
import os, time

def judge(text, gold):
    if text == "sleep":
        time.sleep(600)
    if text == "die":
        os._exit(7)
    if text == "raise":
        raise KeyError("no such thing")
    return None if text == "unsure" else text == gold
"""


@pytest.fixture(scope="module")
def math_judge() -> Iterator[Judge]:
    with Judge(LabelSection(timeout_seconds=60)) as judge:
        yield judge


@pytest.fixture
def own_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    (tmp_path / "own_judge.py").write_text(OWN_JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Judge(LabelSection(judge="own_judge:judge", timeout_seconds=60)) as judge:
        yield judge


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("12 + 45 = 57\n57 - 8 = 49\nAnswer: 49", "49", ("49", True, None)),
        ("12 + 45 = 57\n57 - 8 = 49\nAnswer: 57", "49", ("57", False, None)),
        (r"so it is \boxed{\frac{2}{4}}.", "1/2", ("1/2", True, None)),
        ("The answer is $1,234.", "1234", ("1234", True, None)),
        ("Answer: 52.0", "52", ("52", True, None)),
        ("The answer is **42**.", "42", ("42", True, None)),
        ("**Answer:** 42", "42", ("42", True, None)),
        ("**Answer**: 42", "42", ("42", True, None)),
        ("**Final answer: 42.**", "42", ("42", True, None)),
        ("The answer is 12 dollars.", "12", ("12", True, None)),
        ("Answer: 12 marbles left", "12", ("12", True, None)),
        ("Answer: 13 marbles left", "12", ("13", False, None)),
        ("Answer: x + 1", "x+1", ("x + 1", True, None)),
        (r"\boxed{\$1{,}234}", "1234", ("1234", True, None)),
        ("Answer: 5", "log(5)", ("5", False, None)),
        ("I do not know", "3", (None, False, None)),
        ("", "3", (None, False, None)),
    ],
)
def test_math_says_what_is_answered_and_whether_it_is_right(
    math_judge: Judge, text: str, gold: str, expected: tuple[str | None, bool, None]
):
    assert math_judge(text, gold) == expected


def test_a_gold_answer_that_is_no_expression_is_an_error_and_not_a_wrong_response(math_judge: Judge):
    answer, correct, error = math_judge("Answer: 3", "")
    assert (answer, correct) == (None, None) and error and error.startswith("unreadable_gold: ")


def test_a_judge_works_outside_the_main_thread(math_judge: Judge):
    found: list[Judgement] = []
    thread = threading.Thread(target=lambda: found.append(math_judge("Answer: 5", "5")))
    thread.start()
    thread.join()
    assert found == [("5", True, None)]


def test_an_endless_judgement_is_killed_and_the_next_one_works(own_judge: Judge):
    start = time.monotonic()
    with Judge(LabelSection(judge="own_judge:judge", timeout_seconds=10)) as hasty:
        assert hasty("sleep", "1") == (None, None, "timeout: no judgement within 10 s")
        assert time.monotonic() - start < 300  # the judge would sleep for 600
        assert hasty("1", "1").correct is True


def test_a_judge_that_dies_is_started_again(own_judge: Judge):
    assert own_judge("die", "1") == (None, None, "crash: the judge ended with exit code 7")
    assert own_judge("2", "1").correct is False


def test_a_judge_that_raises_or_is_unsure_gives_a_reason(own_judge: Judge):
    assert own_judge("raise", "1").error == "judge_error: KeyError: 'no such thing'"
    assert own_judge("unsure", "1") == (None, None, "undecided: the judge returned None")


@pytest.mark.parametrize("name", ["no_such_module:judge", "json:no_such_function"])
def test_a_judge_that_does_not_load_is_refused_at_once(name: str):
    with pytest.raises(UserError, match=f"label.judge '{name}': .*no"):
        Judge(LabelSection(judge=name))


def test_the_exact_judge_compares_numbers_as_numbers_and_texts_without_case():
    with Judge(LabelSection(judge="exact", timeout_seconds=60)) as judge:
        assert judge("It costs $1,234.50", "1234.5") == ("1234.5", True, None)
        assert judge("3 and then 4", "3") == ("4", False, None)
        assert judge("Answer: Paris.", "paris") == ("Paris", True, None)
        assert judge("no number", "3") == (None, False, None)
        for text in (
            "The answer is **42**.",
            "**Answer:** 42",
            "Answer: $42 in all",
            r"\boxed{\$42}",
            "so 40 + 2 = 42L",
        ):
            assert judge(text, "42") == ("42", True, None), text
        assert judge("Answer: 50%", "50").correct and judge(r"\boxed{1{,}234}", "1234").correct
        assert judge("Answer: 30 + 12 = 42", "42").correct
        assert judge("Answer: 42 or 43", "42") == ("42 or 43", False, None)
        assert judge(r"\boxed{\text{Paris}}", "Paris").correct and judge("Answer: *Paris*", "Paris").correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 12.5kg in total", "12.5"),
        ("1,200m long", "1200"),
        ("12,3456", "3456"),
        ("3 for the 2nd", "3"),
        ("2**3 is 8", "8"),
        ("1.5 and .25", "0.25"),
        ("a1 or b2", None),
        ("some 2 to 1e5", "2"),
        ("Answer: 1e5000", "1e5000"),
    ],
)
def test_a_number_is_read_whole_with_its_unit_at_it(text: str, answer: str | None):
    assert exact_answer(text, "1") == answer


def test_the_choice_judge_reads_letters():
    with Judge(LabelSection(judge="choice", timeout_seconds=60)) as judge:
        assert judge("A is tempting. The answer is (B).", "B") == ("B", True, None)
        assert judge("I choose\nC", "(C)") == ("C", True, None)
        assert judge("Answer: D", "A") == ("D", False, None)
        assert judge("All of them", "A") == (None, False, None)
        for text in (
            "The answer is Option B.",
            r"\boxed{\text{B}}",
            r"\boxed{\mathrm{(B)}}",
            "Answer: **B**",
            "Answer: (b)",
        ):
            assert judge(text, "B") == ("B", True, None), text
        assert judge("Answer: B", "Option B").correct
        assert judge("(A) looks right at first. The answer is Paris.", "A") == (None, False, None)
        assert judge("Answer: a dog", "A").correct is False
        assert judge("A", "forty").correct is None


def test_answer_pattern_takes_the_last_match():
    with Judge(LabelSection(judge="exact", answer_pattern=r"<(\d+)>", timeout_seconds=60)) as judge:
        assert judge("<1> no, <2>, and 3", "2") == ("2", True, None)
        assert judge("2", "2") == (None, False, None)


def test_the_final_answer_is_the_last_box_or_the_last_line_that_says_so():
    assert final_answer(r"\boxed{1} then \boxed{x^{2}}") == "x^{2}"
    assert final_answer("Answer: 1\nAnswer: 2.") == "2"
    assert final_answer("work\n#### 72") == "72"
    assert final_answer("nothing") is None
    assert exact_answer("A: 18", "18") == "18"
    assert exact_answer("about twelve", "18") is None


FORTY_TWO = [
    "Answer: 42",
    "**Answer:** **42.0**",
    "The answer is 42 dollars.",
    r"The answer is \$42 per hour.",
    r"so \boxed{$42$}",
    r"\boxed{42\text{ apples}}",
    r"\boxed{42 \, \text{km}}",
]
APART = ["Answer: 2", "Answer: 2 pi", r"\boxed{2x}", "Answer: sqrt(2)", "Answer: 2/3", "Answer: 2 or 3 of them"]


def test_answers_that_the_math_judge_takes_for_one_vote_together():
    with Judge(LabelSection(timeout_seconds=60)) as judge:
        assert {judge(text, "42").answer for text in FORTY_TWO} == {"42"}
        assert len({judge(text, "2").answer for text in APART}) == len(APART)
    assert {vote_answer(text, "math") for text in FORTY_TWO} == {"42"}
    assert len({vote_answer(text, "math") for text in APART}) == len(APART)


def test_where_no_gold_answer_is_known_a_number_somewhere_is_no_answer():
    """Who asks may not want a number, and a response that was cut off has one too."""
    for text in ("In 1889 the tower was built.", "1 + 2 = 3\n3 + "):
        assert vote_answer(text, "math") is vote_answer(text, "exact") is None
    assert vote_answer("Answer: Paris in 1889", "math") == "Paris in 1889"


def test_other_judges_answers_vote_in_their_own_forms():
    assert vote_answer("Answer: 42 dollars", "exact") == "42 dollars" and vote_answer("Answer: 42.0", "exact") == "42"
    assert {vote_answer(text, "choice") for text in ("Answer: (B)", "Answer: Option B.", "I take\nB")} == {"B"}
    assert vote_answer("1 <42.0> 3", "math", r"<(.+)>") == "42"


MANY = 50_000


@pytest.mark.parametrize(
    "text",
    [
        "Answer: " + "." * MANY + "x",
        "Answer: 1" + " " * MANY + "x",
        "\n" * MANY + "x",
        r"\boxed{(" + " " * MANY + "b}",
        "answer " * MANY,
        r"\boxed{" * MANY,
        "Answer: 1e999999999",
    ],
)
def test_what_a_model_may_write_without_end_is_looked_at_in_no_time(text: str):
    """A run of it that was tried from each of its places took half a minute, and longer numbers than memory holds."""
    start = time.thread_time()  # of this thread: a busy machine is no failure
    answer = exact_answer(text, "1"), choice_answer(text), vote_answer(text, "math")
    assert time.thread_time() - start < 10
    assert sum(len(each or "") for each in answer) <= 3 * len(text)


def test_the_judge_process_imports_neither_torch_nor_ray():
    code = "import sys, prm_ray.answers; print({'torch', 'ray', 'pydantic', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
