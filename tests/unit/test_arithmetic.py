"""The arithmetic world: exact problems, exact solutions, exact truth about every step."""

import pytest

from prm_ray.arithmetic import first_wrong_step, make_problems, solution, value
from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.problems import load_problems
from prm_ray.settings import ArithmeticSection

SECTION = ArithmeticSection()


def test_a_worked_solution_by_hand() -> None:
    assert solution("18+9-3*2") == "18+9-6\n27-6\n21"
    assert solution("7*9-6*8") == "63-6*8\n63-48\n15"


def test_every_line_of_every_solution_has_the_problems_value() -> None:
    for problem in make_problems(300, "0", SECTION):
        assert problem.problem and problem.solution
        steps = problem.solution.splitlines(keepends=True)
        assert {eval(step) for step in [problem.problem, *steps]} == {int(problem.answer or "")}
        assert first_wrong_step(steps, problem.problem) is None
        assert len(steps) == SECTION.min_operations
        assert steps[-1] == problem.answer


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("21", 21), ("-3+5", 2), ("2*3*4-1", 23), ("2-3*4", -10), ("007+1", 8)],
)
def test_values_by_hand(expression: str, expected: int) -> None:
    assert value(expression) == expected


@pytest.mark.parametrize("text", ["", "3+", "+3", "3 + 4", "__import__('os')", "9" * 200, "3**9", "1e9", "Answer: 3"])
def test_what_is_not_an_expression_has_no_value(text: str) -> None:
    assert value(text) is None


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (["18+9-6\n", "27-6\n", "21"], None),
        (["18+9-5\n", "27-5\n", "22"], 0),
        (["18+9-6\n", "26-6\n", "20"], 1),
        (["18+9-6\n", "27-6\n", "24"], 2),
        (["18+9-6\n", "what?\n", "21"], 1),
        (["27-6\n", "21"], None),  # a step left out is not a wrong step
    ],
)
def test_the_first_wrong_step_is_found(steps: list[str], wrong: int | None) -> None:
    assert first_wrong_step(steps, "18+9-3*2") == wrong


def test_splits_are_disjoint_and_the_test_split_stays_when_there_is_more_to_train_on() -> None:
    def texts(split: str, num_train: int) -> list[str | None]:
        config = RunConfig.model_validate(
            {"problems": {"num_train": num_train, "num_test": 50}, "warmup": {"enabled": True, "num_problems": 100}}
        )
        return [problem.problem for problem in load_problems(config, split)]  # type: ignore[arg-type]

    test, train, warmup = texts("test", 200), texts("train", 200), texts("warmup", 200)
    assert len({*test, *train, *warmup}) == 350
    assert texts("test", 300) == test
    assert texts("train", 300)[:200] == train


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert make_problems(20, "1", SECTION) == make_problems(20, "1", SECTION)
    assert make_problems(20, "1", SECTION) != make_problems(20, "2", SECTION)


def test_a_world_too_small_for_the_number_asked_is_refused() -> None:
    small = ArithmeticSection(min_operations=1, max_operations=1, max_number=2, max_factor=2)
    with pytest.raises(UserError, match="different problems, 500 are needed"):
        make_problems(500, "0", small)
