"""Log-probs of policy and reference -> token rewards -> step rewards -> one reward a response.

Formulas: "Free Process Rewards without Process Labels" (arXiv 2412.01981), section 2 and Eq. 3. Letters: T tokens of
one response, S its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

AGGREGATIONS = ("sum", "mean", "min", "last")
"""How the step rewards of a response become one number."""


def token_rewards(logprobs_T: Tensor, ref_logprobs_T: Tensor | None, beta: float) -> Tensor:
    """beta * log(pi / pi_ref) of every token, float32 [T]; its cumulative sum is the prefix value q (Prop. 3.1).

    Without reference log-probs, beta * log pi: as if the reference were uniform, up to a constant a token (Table 5).
    """
    logprobs_T = logprobs_T.float()
    return beta * (logprobs_T if ref_logprobs_T is None else logprobs_T - ref_logprobs_T.float())


def step_rewards(token_rewards_T: Sequence[float], step_ends: Sequence[int]) -> list[float]:
    """Process rewards r^t = q^t - q^(t-1): the token rewards of each step added up (Eq. 3), S numbers.

    `step_ends` are token offsets, the last equal to T; so the step rewards add up to the reward of the response.
    """
    if not step_ends or step_ends[-1] != len(token_rewards_T):
        raise ValueError(f"step ends {list(step_ends)} must end at the number of tokens, {len(token_rewards_T)}")
    return [sum(token_rewards_T[start:end]) for start, end in zip([0, *step_ends[:-1]], step_ends, strict=True)]


_AGGREGATE: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,  # the outcome reward itself: beta * log(pi(y) / pi_ref(y))
    "mean": lambda rewards: sum(rewards) / len(rewards),
    "min": min,  # the paper's best-of-N (section 4.1)
    "last": lambda rewards: rewards[-1],
}


def aggregate(step_rewards_S: Sequence[float], how: str) -> float:
    """One reward for a response. `how` is one of `AGGREGATIONS`; at least one step."""
    if how not in _AGGREGATE:
        raise ValueError(f"aggregation {how!r} must be one of {', '.join(AGGREGATIONS)}")
    return float(_AGGREGATE[how](step_rewards_S))
