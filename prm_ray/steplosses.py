"""How objectives on step labels are asked of responses, and which objective a run has.

The formulas are in `core/stepobjectives.py` (and, for outcome labels, `core/objectives.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from prm_ray.core.objectives import dpo, nca
from prm_ray.core.packing import PackedBatch
from prm_ray.core.stepobjectives import step_cross_entropy, step_ranking, step_sign, step_squared_error
from prm_ray.outcomelosses import CrossEntropy, Kto, OutcomeLoss, Pairs, PerResponse, PrefixCrossEntropy
from prm_ray.trainer import Loss
from prm_ray.trainingdata import Preview

if TYPE_CHECKING:
    from prm_ray.outcomedata import OutcomeData
    from prm_ray.settings import TrainSection

StepLabels = Literal["soft", "hard", "outcome"]
"""As they are; 1 if above 0, i.e. if any completion was right (arXiv 2312.08935 Eq. 3); or, at every step, whether the
whole response is right."""


class StepLoss(PerResponse):
    """The labelled steps of every response, of `beta` times their log-ratios (or 1 times the logits of a head)."""

    def __init__(
        self,
        formula: Callable[[Tensor, Tensor], Tensor],
        labels: StepLabels,
        beta: float = 1.0,
        of_prefixes: bool = False,
    ):
        """`formula` takes step rewards, or `of_prefixes` prefix values, [S] and labels [S] of the labelled steps."""
        self._formula, self._labels, self._beta, self._of_prefixes = formula, labels, beta, of_prefixes

    def loss(self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        def summed(batch: PackedBatch, values_R: Tensor) -> Tensor:
            rows = data.rows_of(items, batch)
            values = zip(rows, values_R.split(batch.lengths), strict=True)
            losses = [data.weight(row) * self._of_response(data, row, values_T) for row, values_T in values]
            return torch.stack(losses).sum()

        return summed

    def _of_response(self, data: OutcomeData, row: int, values_T: Tensor) -> Tensor:
        values_S = self._beta * data.step_values(row, values_T)
        if self._of_prefixes:
            values_S = values_S.cumsum(dim=0)
        labels = [data.labels[row]] * len(values_S) if self._labels == "outcome" else data.step_labels(row) or []
        known = [step for step, label in enumerate(labels) if label is not None]
        if not known:
            return 0.0 * values_S.sum()
        label_S = torch.tensor([float(labels[step] or 0) for step in known], device=values_S.device)
        return self._formula(values_S[known], (label_S > 0).float() if self._labels == "hard" else label_S)


def training_loss(section: TrainSection, seed: int) -> OutcomeLoss:
    """The objective of a run."""
    beta = section.beta if section.reward == "log_ratio" else 1.0
    match section.objective:
        case "ce":
            return CrossEntropy(beta)
        case "bradley_terry":
            return Pairs(dpo, beta, section.max_pairs, seed)
        case "dpo" | "nca" as name:
            return Pairs({"dpo": dpo, "nca": nca}[name], beta, section.max_pairs, seed)
        case "kto":
            return Kto(beta)
        case "prefix_ce":
            return PrefixCrossEntropy(beta, section.margin, section.token_weights)
        case "step_ce":
            return StepLoss(step_cross_entropy, section.step_labels, beta)
        case "step_squared_error":
            return StepLoss(step_squared_error, section.step_labels, beta)
        case "step_sign":
            return StepLoss(_of_hard(step_sign), "hard", beta)
        case "step_ranking":
            return StepLoss(_of_hard(partial(step_ranking, zeta=section.zeta)), "hard", beta, of_prefixes=True)


def _of_hard(formula: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda values_S, label_S: formula(values_S, label_S > 0)
