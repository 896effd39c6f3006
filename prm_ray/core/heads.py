"""Heads of reward models that are trained on hidden states: one number, a logit, at any token.

sigmoid(logit) is the model's probability that what it has read up to that token is right. A head is called with the
transformers model and hidden states [U, E] and gives float32 [U]; `core.forward.response_values` asks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prm_ray.core.forward import logit_scale


@dataclass(frozen=True)
class LabelTokens:
    """logit(right) - logit(wrong) of two words that could come next, so that sigmoid is their softmax.

    A model that predicts a label behind each step, as Math-Shepherd's does (arXiv 2312.08935), read without writing
    the label into the text: all steps of a response in one pass, and no step sees another's label.
    """

    right: int
    wrong: int

    def __call__(self, model: Any, hidden_UE: Tensor) -> Tensor:
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        words = torch.tensor([self.right, self.wrong], device=hidden_UE.device)
        bias = None if head.bias is None else head.bias[words]
        logits_U2 = functional.linear(hidden_UE * logit_scale(config), head.weight[words], bias).float()
        if softcap := getattr(config, "final_logit_softcapping", None):
            logits_U2 = softcap * torch.tanh(logits_U2 / softcap)
        return logits_U2[:, 0] - logits_U2[:, 1]


def score_head(model: Any, hidden_UE: Tensor) -> Tensor:
    """The module `score` of a model for sequence or token classification: its one output, or those of two classes,
    wrong and right, as logit(right) - logit(wrong)."""
    scores_UC = model.score(hidden_UE).float()
    return scores_UC[:, 0] if scores_UC.shape[1] == 1 else scores_UC[:, 1] - scores_UC[:, 0]
