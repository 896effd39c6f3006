"""A small world with exact truth: arithmetic chains, their worked solutions, and which step of a solution is wrong.

12 + 45 - 8        the problem
12 + 45 = 57       one operation a line, from left to right
57 - 8 = 49
Answer: 49
"""

from __future__ import annotations

import random
import re

from prm_ray.config import ArithmeticSection
from prm_ray.errors import UserError
from prm_ray.problems import Problem

DEFAULT_NUM_TRAIN, DEFAULT_NUM_TEST = 1000, 200
"""Problems made where problems.num_train / num_test says none."""
_TRIES_PER_PROBLEM = 200
_STEP = re.compile(r"\s*(-?\d+)\s*([-+*])\s*(-?\d+)\s*=\s*(-?\d+)\s*")
_ANSWER = re.compile(r"\s*Answer:\s*(-?\d+)\s*")


def make_problems(num: int, seed: int, section: ArithmeticSection) -> list[Problem]:
    """The first `num` different problems of the stream that `seed` begins; a longer list starts with the shorter one.

    Raises `UserError` if the section's numbers allow fewer problems than that.
    """
    rng = random.Random(f"arithmetic {seed}")
    seen: set[str] = set()
    problems: list[Problem] = []
    tries = 0
    while len(problems) < num:
        text = _make_chain(rng, section)
        tries += 1
        if text not in seen:
            seen.add(text)
            tries = 0
            problems.append(_solve(text, len(problems) + 1))
        elif tries > _TRIES_PER_PROBLEM:
            raise UserError(
                f"[arithmetic] makes only about {len(problems)} different problems, {num} are needed: "
                "raise arithmetic.max_number or arithmetic.max_operations"
            )
    return problems


def first_wrong_step(steps: list[str], problem: str) -> int | None:
    """Index (from 0) of the first step that is wrong, None if none is.

    A step is right if it takes the value so far, applies the problem's next operation and gets the right value; the
    last step is right if it says the problem's value. Missing steps are wrong at the index where they are missing.
    """
    value, operations = _parse(problem)
    for index, step in enumerate(steps):
        answer = _ANSWER.fullmatch(step)
        if answer:
            return None if not operations and int(answer[1]) == value and index == len(steps) - 1 else index
        match = _STEP.fullmatch(step)
        if not match or not operations:
            return index
        operator, operand = operations.pop(0)
        expected = (value, operator, operand, _apply(value, operator, operand))
        if (int(match[1]), match[2], int(match[3]), int(match[4])) != expected:
            return index
        value = expected[3]
    return len(steps)


def _make_chain(rng: random.Random, section: ArithmeticSection) -> str:
    num_operations = rng.randint(section.min_operations, section.max_operations)
    chain = [str(rng.randint(1, section.max_number))]
    for _ in range(num_operations):
        chain += [rng.choice(section.operators), str(rng.randint(1, section.max_number))]
    return " ".join(chain)


def _solve(problem: str, row: int) -> Problem:
    value, operations = _parse(problem)
    lines = []
    for operator, operand in operations:
        result = _apply(value, operator, operand)
        lines.append(f"{value} {operator} {operand} = {result}")
        value = result
    return Problem(problem, str(value), "\n".join([*lines, f"Answer: {value}"]), row)


def _parse(problem: str) -> tuple[int, list[tuple[str, int]]]:
    """First number, then (operator, number) pairs, worked from left to right."""
    first, *rest = problem.split()
    return int(first), [(operator, int(operand)) for operator, operand in zip(rest[::2], rest[1::2], strict=True)]


def _apply(value: int, operator: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
