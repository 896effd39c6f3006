"""Training objectives on outcome labels: log-ratios and labels in, a summed loss out.

A loss is a *sum*; the trainer divides once by the count of the whole step, over all micro-batches and workers, so how
a step is cut changes nothing. What is counted differs: responses for `cross_entropy`, `kto`, `prefix_cross_entropy`,
pairs for `dpo` and `nca`, tokens for `negative_log_likelihood`. Without a reference, log pi stands in for a log-ratio
(arXiv 2412.01981, Table 5). `stepobjectives.py` has those on step labels.

Letters: B responses, P pairs of a right and a wrong response to one prompt, T tokens of a response, R response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

TokenWeights = Literal["uniform", "early", "late"]
"""How the prefixes of a response count in `prefix_cross_entropy`."""


def cross_entropy(log_ratio_B: Tensor, label_B: Tensor, beta: float, weight_B: Tensor | None = None) -> Tensor:
    """CE on the outcome label, arXiv 2412.01981 Eq. 5: -[l log s(r) + (1 - l) log(1 - s(r))], r = beta * log-ratio.

    `log_ratio_B` is log pi(y) - log pi_ref(y) summed over the response's tokens, float32; `label_B` is bool, or a
    chance of being right in [0, 1]; `weight_B` counts how often a response was sampled. The logits form does not
    saturate where sigmoid and BCE one after the other would.
    """
    reward_B = beta * log_ratio_B
    return functional.binary_cross_entropy_with_logits(reward_B, label_B.to(reward_B), weight_B, reduction="sum")


def dpo(log_ratio_B: Tensor, pairs_P2: Tensor, beta: float, weight_P: Tensor | None = None) -> Tensor:
    """-log s(r_right - r_wrong), r = beta * log-ratio: direct preference optimisation (arXiv 2305.18290 Eq. 7).

    `pairs_P2` has the indices of a right and of a wrong response to the same prompt.
    """
    right_P, wrong_P = (beta * log_ratio_B[pairs_P2]).unbind(dim=1)
    return _weighted_sum(-functional.logsigmoid(right_P - wrong_P), weight_P)


def nca(log_ratio_B: Tensor, pairs_P2: Tensor, beta: float, weight_P: Tensor | None = None) -> Tensor:
    """-log s(r_right) - 1/2 log s(-r_right) - 1/2 log s(-r_wrong): noise contrastive alignment of a pair.

    arXiv 2402.05369 for two responses, as `nca_pair` of TRL has it. Unlike DPO it holds the right response's own reward
    up, not only its distance to the wrong one.
    """
    right_P, wrong_P = (beta * log_ratio_B[pairs_P2]).unbind(dim=1)
    losses_P = -functional.logsigmoid(right_P)
    losses_P = losses_P - 0.5 * (functional.logsigmoid(-right_P) + functional.logsigmoid(-wrong_P))
    return _weighted_sum(losses_P, weight_P)


def kto(log_ratio_B: Tensor, correct_B: Tensor, kl: Tensor, beta: float, weight_B: Tensor | None = None) -> Tensor:
    """1 - s(beta * (log-ratio - kl)) of a right response, 1 - s(beta * (kl - log-ratio)) of a wrong one.

    Kahneman-Tversky optimisation, arXiv 2402.01306 Eq. 7-8, with both kinds of response weighted alike. `kl` comes from
    `kto_kl` and gets no gradient.
    """
    advantage_B = beta * (log_ratio_B - kl.detach())
    return _weighted_sum(torch.sigmoid(torch.where(correct_B, -advantage_B, advantage_B)), weight_B)


def kto_kl(mismatched_log_ratio_B: Tensor) -> Tensor:
    """The batch's estimate of KL(pi || pi_ref), at least 0: the mean log-ratio of responses to other prompts."""
    return mismatched_log_ratio_B.detach().mean().clamp(min=0)


def prefix_cross_entropy(
    log_ratio_T: Tensor, label: bool | float, beta: float, margin: float, weights: TokenWeights = "uniform"
) -> Tensor:
    """Length-normalised CE on every prefix of one response, the implicit prefix value model of arXiv 2604.13197.

    With v_t = beta / t * (log-ratios up to t): the mean over t of
    -l log s(v_t - margin) - (1 - l) log(1 - s(v_t + margin)).
    `weights` makes late prefixes count in proportion to t, or early ones to T + 1 - t; they add up to 1.
    """
    number_T = torch.arange(1, len(log_ratio_T) + 1, device=log_ratio_T.device, dtype=log_ratio_T.dtype)
    value_T = beta * log_ratio_T.cumsum(dim=0) / number_T
    right_T, wrong_T = functional.logsigmoid(value_T - margin), functional.logsigmoid(-value_T - margin)
    weight_T = {"uniform": torch.ones_like(number_T), "late": number_T, "early": number_T.flip(0)}[weights]
    losses_T = -(float(label) * right_T + (1 - float(label)) * wrong_T)
    return (losses_T * weight_T).sum() / weight_T.sum()


def negative_log_likelihood(logprobs_R: Tensor) -> Tensor:
    """Supervised fine-tuning: -log p added up over R response tokens (its count is tokens, not responses)."""
    return -logprobs_R.sum()


def _weighted_sum(losses: Tensor, weight: Tensor | None) -> Tensor:
    return (losses if weight is None else losses * weight).sum()
