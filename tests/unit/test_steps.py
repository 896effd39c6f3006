"""Steps: splitting loses nothing, and every token lies in exactly one step."""

import random

import pytest

from prm_ray.core.steps import join_steps, split_steps, step_token_ends, token_ends_at

RULES = ["blank_line", "newline", "step_k", "none", r"regex:(?m)^Step"]
TEXTS = [
    "Step 1: a\n\nStep 2: b",
    "no steps at all",
    "a\n\n\n\nb",  # an empty step between
    "a\nb\n\n\n",  # trailing blank lines
    "\n\n a",  # nothing before the first separator
    "漢字\n\ném🙂\n \n\U0001d4b3",
    "\n",
    "Step 10 Step 2\n## Step 3: x\n**Step 4** y",
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", TEXTS)
def test_joining_the_steps_gives_the_text_back(text: str, rule: str) -> None:
    steps = split_steps(text, rule)
    assert "".join(steps) == text
    assert all(steps)


def test_splitting_random_texts_is_lossless() -> None:
    alphabet = ["\n", "\n\n", " ", "é", "🙂", "Step 1", "x", "\r\n", "\t"]
    for seed in range(300):
        text = "".join(random.Random(seed).choices(alphabet, k=12))
        for rule in RULES:
            assert "".join(split_steps(text, rule)) == text


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("blank_line", ["Step 1: a\nb\n\n", "Step 2: c"]),
        ("newline", ["Step 1: a\n", "b\n\n", "Step 2: c"]),
        ("step_k", ["Step 1: a\nb\n\n", "Step 2: c"]),
        ("regex:c", ["Step 1: a\nb\n\nStep 2: ", "c"]),
        ("none", ["Step 1: a\nb\n\nStep 2: c"]),
    ],
)
def test_each_rule_cuts_where_it_says(rule: str, steps: list[str]) -> None:
    assert split_steps("Step 1: a\nb\n\nStep 2: c", rule) == steps


def test_a_boundary_inside_a_token_belongs_to_that_token() -> None:
    """Tokens "a" ".\\n\\nb" "c" <end>: the separator ends inside the second token, so the first step has two tokens."""
    assert step_token_ends("a.\n\nbc", [1, 5, 6, 6], "blank_line") == [2, 4]


def test_steps_that_share_their_only_token_become_one() -> None:
    """One token holds two whole lines: two cuts, one token offset."""
    assert step_token_ends("a\nb\nc", [4, 5], "newline") == [1, 2]


def test_the_last_step_ends_at_the_last_token_even_when_the_text_ends_earlier() -> None:
    assert step_token_ends("a\n\n", [1, 3, 3], "blank_line") == [3]


@pytest.mark.parametrize(
    ("rule", "text", "ends"),
    [
        ("newline", "a\n\nb", [2, 3, 4]),
        ("blank_line", "a\n\n\n\nb", [3, 5, 6]),
        ("step_k", "Step 1: a\n\nStep 2: \n\nStep 3: b", [11, 21, 30]),
        ("none", "a\n\n\n\nb", [3, 5, 6]),
    ],
)
def test_given_steps_are_joined_as_the_rule_finds_them_and_none_is_lost(rule: str, text: str, ends: list[int]) -> None:
    assert join_steps(["a", "", "b"], rule) == (text, ends)


def test_steps_of_a_rule_come_back_when_they_are_joined_again() -> None:
    for rule in ("newline", "blank_line"):
        text = join_steps(["x = 1", "y = 2\t", "z"], rule)[0]
        assert join_steps([step.rstrip("\n") for step in split_steps(text, rule)], rule)[0] == text


def test_given_steps_inside_one_token_end_with_it() -> None:
    """Tokens "a\\n\\nb" "c" <end>: three ends of given steps, none of them dropped."""
    assert token_ends_at([2, 3, 5], [4, 5, 5]) == [1, 1, 2]


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="step rule 'paragraph' must be"):
        split_steps("a", "paragraph")


def test_a_response_of_zero_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        step_token_ends("", [], "newline")
