"""Objectives on step labels: of heads, and for a second stage behind outcome training of an implicit PRM. Step rewards
of one response in, its loss out.

The paper asks whether such labels still help (arXiv 2412.01981 section 5.3; they do not there). It states one loss, its
code uses another (the squared error) and names a third (the ranking); all three are here. Each is a mean over the steps
of a response, so that long responses count like short ones.

Letters: S labelled steps of one response.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def step_cross_entropy(step_logit_S: Tensor, label_S: Tensor) -> Tensor:
    """-1/S sum [l log s(z) + (1 - l) log(1 - s(z))], l a label or a chance of being right in [0, 1].

    What process reward models with a head are trained on (arXiv 2312.08935 Eq. 2).
    """
    return functional.binary_cross_entropy_with_logits(step_logit_S, label_S.to(step_logit_S))


def step_sign(step_reward_S: Tensor, correct_S: Tensor) -> Tensor:
    """-1/S sum log s(l |r|), l = +1 for a right step and -1 for a wrong one: the loss as section 5.3 prints it.

    With |r| and not r: a right step is pushed away from 0, to whichever side it is on; a wrong one towards 0.
    """
    sign_S = correct_S.to(step_reward_S) * 2 - 1
    return -functional.logsigmoid(sign_S * step_reward_S.abs()).mean()


def step_squared_error(step_reward_S: Tensor, label_S: Tensor) -> Tensor:
    """1/S sum (s(r) - l)^2, l the label or a chance of being right in [0, 1]."""
    return functional.mse_loss(torch.sigmoid(step_reward_S), label_S.to(step_reward_S))


def step_ranking(prefix_value_S: Tensor, correct_S: Tensor, zeta: float = 4.0) -> Tensor:
    """Values rise over right steps and lie `zeta` below them at wrong ones: PQM's comparative loss, arXiv 2410.11287.

    Its Eq. 10, with the empty prefix (value 0) as the first right one: the mean over right prefixes c of
    -log [ exp q_c / (sum over right ones up to c of exp q + sum over wrong ones of exp(q + zeta)) ].
    """
    right_C = torch.cat([prefix_value_S.new_zeros(1), prefix_value_S[correct_S]])
    wrong_W = prefix_value_S[~correct_S] + zeta
    up_to_C = right_C.logcumsumexp(dim=0)
    if len(wrong_W):
        up_to_C = torch.logaddexp(up_to_C, wrong_W.logsumexp(dim=0))
    return (up_to_C - right_C).mean()
