"""Rewards: the sums the method promises."""

import math
from typing import get_args

import pytest
import torch

from prm_ray.core.rewards import AGGREGATIONS, SCHEDULES, aggregate, prefix_values, step_rewards, token_rewards
from prm_ray.settings import Aggregation, ScoreSection


def test_policy_equal_to_reference_gives_rewards_of_exactly_zero() -> None:
    logprobs = torch.randn(7)
    assert token_rewards(logprobs, logprobs.clone(), beta=0.05).tolist() == [0.0] * 7


def test_without_a_reference_a_reward_is_beta_times_the_log_prob() -> None:
    assert token_rewards(torch.tensor([-2.0, -4.0]), None, beta=0.5).tolist() == [-1.0, -2.0]


def test_step_rewards_are_sums_of_token_rewards_and_add_up_to_the_response_reward() -> None:
    """beta 0.5, log-ratios 2, -4, 6: token rewards 1, -2, 3; steps of 2 and 1 tokens: -1 and 3; in all 2."""
    rewards = token_rewards(torch.tensor([2.0, -4.0, 6.0]), torch.zeros(3), beta=0.5).tolist()
    assert step_rewards(rewards, [2, 3]) == [-1.0, 3.0]
    assert aggregate(step_rewards(rewards, [2, 3]), "sum", num_tokens=3) == 2.0


LOG_SIGMOIDS = sum(math.log(1 / (1 + math.exp(-reward))) for reward in (1.0, -2.0, 4.0))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", 3.0),
        ("mean", 1.0),
        ("min", -2.0),
        ("last", 4.0),
        ("product", LOG_SIGMOIDS),
        ("normalized", 0.25),
        ("prefix_min", -1.0),
        ("prefix_mean", 1.0),
    ],
)
def test_aggregations_by_hand(how: str, expected: float) -> None:
    """Step rewards 1, -2, 4 over 12 tokens; prefix values 1, -1, 3."""
    assert aggregate([1.0, -2.0, 4.0], how, num_tokens=12) == pytest.approx(expected, rel=1e-12)


def test_the_config_offers_what_can_be_computed() -> None:
    assert get_args(Aggregation) == AGGREGATIONS
    assert get_args(ScoreSection.model_fields["beta_schedule"].annotation) == SCHEDULES


def test_a_product_of_hopeless_steps_does_not_vanish() -> None:
    assert aggregate([-800.0, -900.0], "product", num_tokens=2) == -1700.0


def test_an_unknown_aggregation_is_named() -> None:
    with pytest.raises(ValueError, match="aggregation 'median' must be one of sum, mean, min, last, product"):
        aggregate([1.0], "median", num_tokens=1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1.0, 1.0, 1.0]), ("inverse", [1, 1 / 2, 1 / 3]), ("decay", [1, 0.95, 0.9025])],
)
def test_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    rewards = token_rewards(torch.full((3,), 2.0), torch.zeros(3), beta=0.5, schedule=schedule)
    assert rewards.tolist() == pytest.approx(expected)


def test_prefix_values_add_up() -> None:
    assert prefix_values([1.0, -2.0, 4.0]) == [1.0, -1.0, 3.0]


def test_step_ends_that_miss_the_last_token_are_refused() -> None:
    with pytest.raises(ValueError, match="must end at the number of tokens, 3"):
        step_rewards([1.0, 2.0, 3.0], [2])
