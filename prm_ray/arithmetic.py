"""A small world with exact truth: expressions, their worked solutions, and which step of a solution is wrong.

18+9-3*2      the problem: at most one product a term, no parentheses, never below zero on the way
18+9-6        one operation a line: products first, then from left to right
27-6
21            the last line is the answer

A line is right if it has the problem's value. No spaces, so that small models read one character a token.
"""

from __future__ import annotations

import random
import re

from prm_ray.errors import UserError
from prm_ray.problems import Problem
from prm_ray.settings import ArithmeticSection

DEFAULT_NUM_TRAIN, DEFAULT_NUM_TEST = 1000, 200
"""Problems made where problems.num_train / num_test says none."""
_TRIES_PER_PROBLEM = 2000
_EXPRESSION = re.compile(r"-?\d+(?:[-+*]\d+)*")
_NUMBER = re.compile(r"-?\d+")
_LONGEST = 100
"""Characters of a line that is still read as an expression; a model may write anything."""


def make_problems(
    num: int, seed: str, section: ArithmeticSection, exclude: frozenset[str] = frozenset()
) -> list[Problem]:
    """The first `num` different problems, none in `exclude`, of the stream that `seed` begins.

    A longer list starts with the shorter one. Raises `UserError` if the section's numbers allow fewer problems.
    """
    rng = random.Random(f"arithmetic {seed}")
    seen = set(exclude)
    problems: list[Problem] = []
    tries = 0
    while len(problems) < num:
        text = _try_expression(rng, section)
        tries += 1
        if text is not None and text not in seen:
            seen.add(text)
            tries = 0
            problems.append(Problem(text, str(value(text)), solution(text), len(problems) + 1))
        elif tries > _TRIES_PER_PROBLEM:
            raise UserError(
                f"[arithmetic] makes only about {len(problems)} different problems, {num} are needed: "
                "raise arithmetic.max_number or arithmetic.max_operations"
            )
    return problems


def solution(problem: str) -> str:
    """The worked solution: after each operation the whole remaining expression, a line each."""
    lines = []
    while not _NUMBER.fullmatch(problem):
        match = re.search(r"\d+\*\d+", problem) or re.match(r"-?\d+[-+]\d+", problem)
        assert match is not None, f"{problem!r} is not an expression"
        problem = problem[: match.start()] + str(value(match[0])) + problem[match.end() :]
        lines.append(problem)
    return "\n".join(lines)


def value(expression: str) -> int | None:
    """Exact value of a line, None if it is not an expression."""
    if len(expression) > _LONGEST or not _EXPRESSION.fullmatch(expression):
        return None
    total = 0
    for term in re.findall(r"[-+]?\d+(?:\*\d+)*", expression):
        first, *factors = (int(number) for number in term.split("*"))
        for factor in factors:
            first *= factor
        total += first
    return total


def first_wrong_step(steps: list[str], problem: str) -> int | None:
    """Index (from 0) of the first step that has not the problem's value; None if there is none."""
    target = value(problem)
    for index, step in enumerate(steps):
        if value(step.rstrip("\n")) != target:
            return index
    return None


def _try_expression(rng: random.Random, section: ArithmeticSection) -> str | None:
    """A random expression, or None if it has another number of operations than drawn or falls below zero on the way."""
    num_operations = rng.randint(section.min_operations, section.max_operations)
    num_terms = rng.randint(num_operations // 2 + 1, num_operations + 1)
    text, total, num_products = "", 0, 0
    for position in range(num_terms):
        if rng.random() < section.product_share:
            factors = (rng.randint(2, section.max_factor), rng.randint(2, section.max_factor))
            term, amount = f"{factors[0]}*{factors[1]}", factors[0] * factors[1]
            num_products += 1
        else:
            amount = rng.randint(1, section.max_number)
            term = str(amount)
        sign = "+" if position == 0 else rng.choice("+-")
        total += amount if sign == "+" else -amount
        text += term if position == 0 else sign + term
        if total < 0:
            return None
    return text if num_terms - 1 + num_products == num_operations else None
