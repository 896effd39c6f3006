"""Rewards: the sums the method promises."""

import pytest
import torch

from prm_ray.core.rewards import AGGREGATIONS, aggregate, step_rewards, token_rewards


def test_policy_equal_to_reference_gives_rewards_of_exactly_zero() -> None:
    logprobs = torch.randn(7)
    assert token_rewards(logprobs, logprobs.clone(), beta=0.05).tolist() == [0.0] * 7


def test_without_a_reference_a_reward_is_beta_times_the_log_prob() -> None:
    assert token_rewards(torch.tensor([-2.0, -4.0]), None, beta=0.5).tolist() == [-1.0, -2.0]


def test_step_rewards_are_sums_of_token_rewards_and_add_up_to_the_response_reward() -> None:
    """beta 0.5, log-ratios 2, -4, 6: token rewards 1, -2, 3; steps of 2 and 1 tokens: -1 and 3; in all 2."""
    rewards = token_rewards(torch.tensor([2.0, -4.0, 6.0]), torch.zeros(3), beta=0.5).tolist()
    assert step_rewards(rewards, [2, 3]) == [-1.0, 3.0]
    assert aggregate(step_rewards(rewards, [2, 3]), "sum") == 2.0


@pytest.mark.parametrize(("how", "expected"), [("sum", 3.0), ("mean", 1.0), ("min", -2.0), ("last", 4.0)])
def test_aggregations_by_hand(how: str, expected: float) -> None:
    assert aggregate([1.0, -2.0, 4.0], how) == expected
    assert how in AGGREGATIONS


def test_an_unknown_aggregation_is_named() -> None:
    with pytest.raises(ValueError, match="aggregation 'median' must be one of sum, mean, min, last"):
        aggregate([1.0], "median")


def test_step_ends_that_miss_the_last_token_are_refused() -> None:
    with pytest.raises(ValueError, match="must end at the number of tokens, 3"):
        step_rewards([1.0, 2.0, 3.0], [2])
