"""The step check on an arithmetic problem whose second line is spoilt on purpose."""

import re

import pytest

from prm_ray.config import RunConfig
from prm_ray.core.rewards import AGGREGATIONS
from prm_ray.settings import ArithmeticSection
from prm_ray.stages.candidates import survey
from prm_ray.stages.stepcheck import step_check
from prm_ray.tables import StageFolder


def spoilt(solution: str, line: int) -> str:
    """The solution with the last number of one line off by one."""
    lines = solution.split("\n")
    lines[line] = re.sub(r"(\d+)(\D*)$", lambda match: f"{int(match[1]) + 1}{match[2]}", lines[line])
    return "\n".join(lines)


def score_rows(step_rewards_of_each):
    from prm_ray.arithmetic import make_problems

    problem = make_problems(1, 3, ArithmeticSection(min_operations=3, max_operations=3))[0]
    text = spoilt(problem.solution, line=1)
    for index, step_rewards in enumerate(step_rewards_of_each(len(text.split("\n")))):
        rewards = {f"reward_{how}": sum(step_rewards) for how in AGGREGATIONS}
        yield {
            **{"prompt_id": "p", "split": "test", "sample_index": index, "problem": problem.problem, "text": text},
            **{"correct": False, "answer": "0", "step_rewards": step_rewards, **rewards},
            **{"ref_logprobs": [0.0, -1.0, 0.0], "step_ends": [1, 2, 3]},
        }


def check(tmp_path, step_rewards_of_each, **sections):
    config = RunConfig.model_validate(
        {"run": {"dir": str(tmp_path)}, "reference": {"step_rule": "newline"}, **sections}
    )
    scores = StageFolder(tmp_path, "score")
    scores.begin({})
    scores.write_part(0, list(score_rows(step_rewards_of_each)))
    return step_check(config, scores, survey(scores))


def test_lowest_step_on_the_spoilt_line_is_a_hit_and_chance_is_one_over_the_steps(tmp_path):
    """Two responses: the lowest reward is on the spoilt line once, on the first line once. Hit rate 1/2."""
    found = check(tmp_path, lambda num: [[0.0, -1.0] + [0.5] * (num - 2), [-1.0] + [0.5] * (num - 1)])
    num_steps = round(1 / found["chance"]["value"])
    assert found["hit_rate"]["value"] == 0.5
    assert found["reference_hit_rate"]["value"] == 1.0, "its least likely step is the spoilt one"
    assert num_steps == 3
    assert found["ratio"]["value"] == pytest.approx(0.5 * num_steps)
    assert (found["num_responses"], found["num_problems"]) == (2, 1)


def test_responses_from_elsewhere_have_no_known_wrong_step(tmp_path):
    assert check(tmp_path, lambda num: [[0.0] * num], problems={"test": "mine.jsonl"}) is None
    assert check(tmp_path, lambda num: [[0.0] * num], **{"import": {"source": "mine.jsonl"}}) is None
