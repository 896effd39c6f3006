"""Log-probs of policy and reference -> token rewards -> step rewards -> one reward a response.

Formulas: "Free Process Rewards without Process Labels" (arXiv 2412.01981), section 2 and Eq. 3. Letters: T tokens of
one response, S its steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

AGGREGATIONS = ("sum", "mean", "min", "last", "product", "normalized", "prefix_min", "prefix_mean")
"""How the step rewards of a response become one number, see `aggregate`."""

SCHEDULES = ("constant", "inverse", "decay")
"""What a token's reward is multiplied by: 1, 1/t, or 0.95^(t-1) at the t-th token (the paper's code)."""
_DECAY = 0.95


def token_rewards(logprobs_T: Tensor, ref_logprobs_T: Tensor | None, beta: float, schedule: str = "constant") -> Tensor:
    """beta * log(pi / pi_ref) of every token, float32 [T]; its cumulative sum is the prefix value q (Prop. 3.1).

    Without reference log-probs, beta * log pi: as if the reference were uniform, up to a constant a token (Table 5).
    `schedule` is one of `SCHEDULES`; all but `constant` weigh late tokens less, and then the sum is no longer what was
    trained.
    """
    logprobs_T = logprobs_T.float()
    rewards_T = beta * (logprobs_T if ref_logprobs_T is None else logprobs_T - ref_logprobs_T.float())
    if schedule == "constant":
        return rewards_T
    index_T = torch.arange(len(rewards_T), device=rewards_T.device)
    return rewards_T * (_DECAY**index_T if schedule == "decay" else 1 / (index_T + 1))


def prefix_values(step_rewards_S: Sequence[float]) -> list[float]:
    """q^t of each step's end, the step rewards added up (Prop. 3.1): `accumulative` in the paper's code."""
    return list(accumulate(step_rewards_S))


def step_rewards(token_rewards_T: Sequence[float], step_ends: Sequence[int]) -> list[float]:
    """Process rewards r^t = q^t - q^(t-1): the token rewards of each step added up (Eq. 3), S numbers.

    `step_ends` are token offsets, the last equal to T; so the step rewards add up to the reward of the response.
    """
    if not step_ends or step_ends[-1] != len(token_rewards_T):
        raise ValueError(f"step ends {list(step_ends)} must end at the number of tokens, {len(token_rewards_T)}")
    return [sum(token_rewards_T[start:end]) for start, end in zip([0, *step_ends[:-1]], step_ends, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log_sigmoid(value: float) -> float:
    return min(value, 0.0) - math.log1p(math.exp(-abs(value)))


_AGGREGATE: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "mean": _mean,
    "min": min,
    "last": lambda rewards: rewards[-1],
    "product": lambda rewards: sum(map(_log_sigmoid, rewards)),
    "prefix_min": lambda rewards: min(prefix_values(rewards)),
    "prefix_mean": lambda rewards: _mean(prefix_values(rewards)),
}


def aggregate(step_rewards_S: Sequence[float], how: str, num_tokens: int) -> float:
    """One reward for a response of at least one step and `num_tokens` tokens.

    `sum` is the outcome reward itself, beta * log(pi(y) / pi_ref(y)), the paper's `orm`; `normalized` is it by token;
    `mean`, `min` (the paper's best-of-N, section 4.1) and `last` are over the step rewards, `prefix_min` and
    `prefix_mean` over the prefix values; `product` is log of the product of sigmoid(step reward), which ranks as the
    product does and does not vanish.
    """
    if how == "normalized":
        return sum(step_rewards_S) / num_tokens
    if how not in _AGGREGATE:
        raise ValueError(f"aggregation {how!r} must be one of {', '.join(AGGREGATIONS)}")
    return float(_AGGREGATE[how](step_rewards_S))
