"""Propositions 3.1 and 3.2 of arXiv 2412.01981, exactly: two models so small that all continuations are listed.

A response is five tokens of a vocabulary of five; the trained policy and its reference are two random models. What the
engine calls a prefix value must be the log-mean-exp of the outcome reward over the reference's continuations, and lie
between their mean (the soft estimate of Monte-Carlo labelling) and their best (the hard one).
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from prm_ray.core.packing import PromptGroup
from prm_ray.core.rewards import prefix_values, step_rewards, token_rewards
from prm_ray.scorer import group_values
from tests.exactness import tiny

VOCABULARY, LENGTH = 5, 5
PROMPT = [3, 1, 4]
RESPONSES = [list(tokens) for tokens in itertools.product(range(VOCABULARY), repeat=LENGTH)]


def all_logprobs(seed: int) -> Tensor:
    """[3125, 5]: log-prob of each token of each response there is."""
    model: Any = tiny("llama", vocab_size=VOCABULARY)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return torch.stack(group_values(model, [PromptGroup(PROMPT, RESPONSES)], 100_000)[0]).double()


@pytest.fixture(scope="module")
def logprobs() -> tuple[Tensor, Tensor]:
    policy, reference = all_logprobs(1), all_logprobs(2)
    for each in (policy, reference):  # a probability distribution over all responses there are
        assert each.sum(dim=1).exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert (policy - reference).abs().max() > 0.5
    return policy, reference


@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
def test_a_prefix_value_is_the_log_mean_exp_of_the_reward_and_between_its_soft_and_hard_estimate(
    logprobs: tuple[Tensor, Tensor], beta: float
) -> None:
    policy, reference = logprobs
    reward = beta * (policy - reference).sum(dim=1)
    for chosen in (0, 777, 3124):
        ends = [1, 3, 5]  # three steps
        rewards_T = token_rewards(policy[chosen], reference[chosen], beta).tolist()
        values = prefix_values(step_rewards(rewards_T, ends))
        for value, end in zip(values, ends, strict=True):
            same = [row for row, tokens in enumerate(RESPONSES) if tokens[:end] == RESPONSES[chosen][:end]]
            log_chance = reference[same, end:].sum(dim=1)
            exact = beta * torch.logsumexp(log_chance + reward[same] / beta, dim=0).item()
            assert value == pytest.approx(exact, abs=2e-4 * beta)
            soft, hard = (log_chance.exp() * reward[same]).sum().item(), reward[same].max().item()
            tolerance = 2e-4 * beta
            assert soft - tolerance <= value <= hard + tolerance
            if end < LENGTH:
                assert soft < value < hard


def test_the_value_tends_to_the_soft_estimate_for_large_beta_and_to_the_hard_one_for_small(
    logprobs: tuple[Tensor, Tensor],
) -> None:
    """Of one and the same outcome reward r, not of the same models: q(beta) = beta * log E exp(r / beta)."""
    policy, reference = logprobs
    reward = (policy - reference).sum(dim=1)
    log_chance = reference.sum(dim=1)
    soft, hard = (log_chance.exp() * reward).sum().item(), reward.max().item()
    values = [beta * torch.logsumexp(log_chance + reward / beta, dim=0).item() for beta in (1e-3, 0.1, 1.0, 10.0, 1e4)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(hard, abs=0.05) and values[-1] == pytest.approx(soft, abs=0.05)
