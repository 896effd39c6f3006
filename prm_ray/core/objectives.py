"""Training objectives: log-ratios and outcome labels in, a summed loss out. B responses.

A loss is a *sum*; the trainer divides once by the number of responses of the whole step, over all micro-batches and
workers, so how a step is cut changes nothing.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(log_ratio_B: Tensor, correct_B: Tensor, beta: float, weight_B: Tensor | None = None) -> Tensor:
    """CE on the outcome label, arXiv 2412.01981 Eq. 5: -[l log s(r) + (1 - l) log(1 - s(r))], r = beta * log-ratio.

    `log_ratio_B` is log pi(y) - log pi_ref(y) summed over the response's tokens, float32; `correct_B` is bool;
    `weight_B` counts how often a response was sampled. The logits form does not saturate where sigmoid and BCE one
    after the other would.
    """
    reward_B = beta * log_ratio_B
    return functional.binary_cross_entropy_with_logits(reward_B, correct_B.float(), weight_B, reduction="sum")


def negative_log_likelihood(logprobs_R: Tensor) -> Tensor:
    """Supervised fine-tuning: -log p added up over R response tokens (its count is tokens, not responses)."""
    return -logprobs_R.sum()
