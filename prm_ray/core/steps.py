"""A response's text -> its reasoning steps -> the token offset where each step ends.

Splitting is lossless: the steps joined are the text, to the character. A boundary inside a token belongs to that token:
the step ends behind it, so that every token lies in exactly one step and every step has at least one token.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

_DELIMITERS = {"blank_line": re.compile(r"\n[^\S\n]*\n\s*"), "newline": re.compile(r"\n\s*")}
_STEP_K = re.compile(r"(?m)^[ \t]*(?:#+ *|\*\*)?Step +\d+\b")


def check_rule(rule: str) -> None:
    """Raises `ValueError` for a rule that `step_char_ends` does not know or whose pattern is no regex."""
    try:
        step_char_ends("", rule)
    except re.error as error:
        raise ValueError(f"step rule {rule!r} has no valid regex: {error}") from None


def step_char_ends(text: str, rule: str) -> list[int]:
    """Character offsets where the steps of `text` end; the last is `len(text)`. At least one, strictly increasing.

    Rules: `blank_line` and `newline` end a step behind the separator, with all white space that follows it (so trailing
    blank lines belong to the step before them); `step_k` begins a step at each "Step 3" at the start of a line;
    `regex:PATTERN` begins a step at each match; `none` makes the whole text one step.
    Raises `ValueError` for a rule that is none of these.
    """
    if rule in _DELIMITERS:
        ends = [match.end() for match in _DELIMITERS[rule].finditer(text) if text[: match.start()].strip()]
    elif rule == "step_k" or rule.startswith("regex:"):
        pattern = _STEP_K if rule == "step_k" else re.compile(rule.removeprefix("regex:"))
        starts = (match.start() for match in pattern.finditer(text) if match.group())
        ends = [start for start in starts if text[:start].strip()]
    elif rule == "none":
        ends = []
    else:
        raise ValueError(f"step rule {rule!r} must be blank_line, newline, step_k, none or regex:PATTERN")
    return [end for end in ends if end < len(text)] + [len(text)]


def split_steps(text: str, rule: str) -> list[str]:
    """The steps of `text`; `"".join` gives the text back."""
    ends = step_char_ends(text, rule)
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def step_token_ends(text: str, token_char_ends: Sequence[int], rule: str) -> list[int]:
    """Token offsets where the steps end (S of them, strictly increasing, the last is the number of tokens).

    `token_char_ends[t]` is the length of the text decoded up to and including token t. Tokens behind the last character
    (the end-of-turn token) belong to the last step. Steps that share their last token become one.
    Raises `ValueError` for a response of zero tokens.
    """
    num_tokens = len(token_char_ends)
    if num_tokens == 0:
        raise ValueError("a response must have at least one token")
    ends = dict.fromkeys(token_ends_at(step_char_ends(text, rule)[:-1], token_char_ends))
    return [*(end for end in ends if end < num_tokens), num_tokens]


def token_ends_at(char_ends: Sequence[int], token_char_ends: Sequence[int]) -> list[int]:
    """For each character offset the number of tokens up to it, the token it lies inside included; one at least.

    Offsets that one token holds together have the same number.
    """
    return [min(bisect_left(token_char_ends, end) + 1, len(token_char_ends)) for end in char_ends]


def join_steps(steps: Sequence[str], rule: str) -> tuple[str, list[int]]:
    """The response that given steps make, and the character offset at which each of them ends (as many, rising).

    They are put together as `rule` finds them: a newline between them, "Step 3: " before them, else a blank line
    between them. A separator belongs to the step before it, also where a step is empty.
    """
    separator = "\n" if rule == "newline" else "\n\n"
    if rule == "step_k":
        steps = [step if _STEP_K.match(step) else f"Step {number}: {step}" for number, step in enumerate(steps, 1)]
    pieces = [*(step + separator for step in steps[:-1]), *steps[-1:]]
    return "".join(pieces), list(accumulate(map(len, pieces)))
