import pytest

from prm_ray.arithmetic import first_wrong_step, make_problems
from prm_ray.config import ArithmeticSection, RunConfig
from prm_ray.errors import UserError
from prm_ray.problems import load_problems

STEPS = ["12 + 45 = 57", "57 - 8 = 49", "Answer: 49"]
PROBLEM = "12 + 45 - 8"


def test_a_longer_list_of_problems_starts_with_the_shorter_one():
    section = ArithmeticSection()
    assert make_problems(40, 7, section)[:10] == make_problems(10, 7, section)
    assert make_problems(10, 7, section) != make_problems(10, 8, section)


def test_every_worked_solution_has_no_wrong_step_and_ends_in_the_gold_answer():
    for problem in make_problems(200, 1, ArithmeticSection(operators="+-*")):
        assert problem.problem and problem.solution
        steps = problem.solution.splitlines()
        assert first_wrong_step(steps, problem.problem) is None
        assert steps[-1] == f"Answer: {problem.answer}" and eval_left_to_right(problem.problem) == int(
            problem.answer or ""
        )


def eval_left_to_right(problem: str) -> int:
    value, *rest = problem.split()
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        value = str(eval(f"({value}) {operator} {operand}"))
    return int(value)


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (STEPS, None),
        (["12 + 45 = 58", "58 - 8 = 50", "Answer: 50"], 0),
        (["12 + 45 = 57", "57 - 8 = 48", "Answer: 48"], 1),
        (["12 + 45 = 57", "57 - 9 = 48", "Answer: 48"], 1),
        (["12 + 45 = 57", "57 - 8 = 49", "Answer: 50"], 2),
        (["12 + 45 = 57", "Answer: 57"], 1),
        (["12 + 45 = 57", "57 - 8 = 49"], 2),
        ([*STEPS, "Answer: 49"], 2),
        (["hello"], 0),
        ([], 0),
    ],
)
def test_the_first_wrong_step_is_found(steps: list[str], wrong: int | None):
    assert first_wrong_step(steps, PROBLEM) == wrong


def test_splits_are_disjoint_and_test_problems_stay_when_training_grows():
    small = RunConfig.model_validate({"problems": {"num_train": 50, "num_test": 30}, "warmup": {"enabled": True}})
    large = RunConfig.model_validate({"problems": {"num_train": 300, "num_test": 30}, "warmup": {"enabled": True}})
    texts = [{problem.problem for problem in load_problems(large, split)} for split in ("train", "test", "warmup")]
    assert [len(split) for split in texts] == [300, 30, 1280]
    assert len(set.union(*texts)) == 1610
    assert load_problems(small, "test") == load_problems(large, "test")


def test_a_space_with_too_few_problems_is_refused():
    section = ArithmeticSection(min_operations=1, max_operations=1, max_number=3, operators="+")
    assert len({problem.problem for problem in make_problems(9, 0, section)}) == 9
    with pytest.raises(UserError, match=r"makes only about 9 different problems, 10 are needed"):
        make_problems(10, 0, section)
