"""How each objective on outcome labels is asked of the responses of a training step.

The formulas are in `core/objectives.py`; here is what they are taken over when a step is cut into micro-batches and
workers: which responses or pairs, by which weights, and divided by what. The cut changes nothing but rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from prm_ray.core.objectives import TokenWeights, cross_entropy, kto, kto_kl, prefix_cross_entropy
from prm_ray.core.packing import PackedBatch, PromptGroup
from prm_ray.trainer import Loss
from prm_ray.trainingdata import Preview
from prm_ray.weights import total

if TYPE_CHECKING:
    from prm_ray.outcomedata import OutcomeData

PairLoss = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
"""`dpo` or `nca`."""


class OutcomeLoss(Protocol):
    needs_both: bool
    """A prompt whose responses are all right or all wrong has no loss."""

    def count(self, data: OutcomeData, items: Sequence[int]) -> float:
        """What the summed loss of these items is divided by."""
        ...

    def loss(self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        """The summed loss of a batch of these items, see `TrainingData.loss`."""
        ...


class PerResponse:
    """A mean over all sampled responses."""

    needs_both = False

    def count(self, data: OutcomeData, items: Sequence[int]) -> float:
        return sum(data.sizes[item] for item in items)


class CrossEntropy(PerResponse):
    """Every response by itself against its label."""

    def __init__(self, beta: float):
        self._beta = beta

    def loss(self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        def summed(batch: PackedBatch, logprobs_R: Tensor) -> Tensor:
            found = data.branches(items, batch, logprobs_R)
            return cross_entropy(found.log_ratio_B, found.label_B, self._beta, found.weight_B)

        return summed


class PrefixCrossEntropy(PerResponse):
    """Every prefix of every response against the response's label."""

    def __init__(self, beta: float, margin: float, weights: TokenWeights):
        self._beta, self._margin, self._weights = beta, margin, weights

    def loss(self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        def summed(batch: PackedBatch, logprobs_R: Tensor) -> Tensor:
            found = data.branches(items, batch, logprobs_R)
            losses = [
                data.weight(row)
                * prefix_cross_entropy(
                    logprobs_T - data.reference(row).to(logprobs_T.device),
                    data.labels[row],
                    self._beta,
                    self._margin,
                    self._weights,
                )
                for row, logprobs_T in zip(found.rows, logprobs_R.split(batch.lengths), strict=True)
            ]
            return torch.stack(losses).sum()

        return summed


class Kto(PerResponse):
    """Every response against the step's estimate of the KL divergence, from responses behind prompts of others."""

    def __init__(self, beta: float):
        self._beta = beta

    def loss(self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        kl = self._kl(data, items, preview)

        def summed(batch: PackedBatch, logprobs_R: Tensor) -> Tensor:
            found = data.branches(items, batch, logprobs_R)
            return kto(found.log_ratio_B, found.label_B > 0.5, kl.to(logprobs_R.device), self._beta, found.weight_B)

        return summed

    def _kl(self, data: OutcomeData, items: Sequence[int], preview: Preview) -> Tensor:
        """Over the whole step: all workers' mismatched responses."""
        mismatched = [data.mismatched(item) for item in items]
        groups = [
            PromptGroup(data.prompt(item), [tokens for tokens, _ in responses])
            for item, responses in zip(items, mismatched, strict=True)
        ]
        references = [logprob for responses in mismatched for _, logprob in responses]
        found = [values.sum().item() for responses in preview(groups) for values in responses]
        sums = total(torch.tensor([sum(found) - sum(references), float(len(found))]))
        return kto_kl(sums[0] / sums[1].clamp(min=1))


class Pairs:
    """Every right response of a prompt against every wrong one, or so many of these pairs at most."""

    needs_both = True

    def __init__(self, loss: PairLoss, beta: float, max_pairs: int | None, seed: int):
        self._loss, self._beta, self._max_pairs, self._seed = loss, beta, max_pairs, seed

    def count(self, data: OutcomeData, items: Sequence[int]) -> float:
        return sum(weight for item in items for _, _, weight in self._pairs(data, item))

    def loss(self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        elsewhere = self._cut_responses(data, items, batches, preview)

        def summed(batch: PackedBatch, logprobs_R: Tensor) -> Tensor:
            found = data.branches(items, batch, logprobs_R)
            here = set(found.rows)
            met = sorted({items[group] for group, _ in batch.branches})
            rows = [*found.rows, *(row for item in met for row in data.rows(item) if row not in here)]
            known = torch.tensor([elsewhere[row] for row in rows[len(found.rows) :]], device=found.log_ratio_B.device)
            log_ratio_X = torch.cat([found.log_ratio_B, known])
            pairs = [pair for item in met for pair in self._pairs(data, item) if here & {*pair[:2]}]
            if not pairs:
                return 0.0 * logprobs_R.sum()
            place = {row: index for index, row in enumerate(rows)}
            pairs_P2 = torch.tensor([[place[right], place[wrong]] for right, wrong, _ in pairs], device=known.device)
            weight_P = torch.tensor([weight for *_, weight in pairs], device=known.device)
            is_cut_P = torch.tensor([not here >= {*pair[:2]} for pair in pairs], device=known.device)
            summed_loss = self._loss(log_ratio_X, pairs_P2, self._beta, weight_P)
            # A cut pair is met in both batches, each time with the other half's value fixed: its gradient is whole, its
            # loss there twice.
            return summed_loss - 0.5 * self._loss(log_ratio_X.detach(), pairs_P2, self._beta, weight_P * is_cut_P)

        return summed

    def _cut_responses(
        self, data: OutcomeData, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview
    ) -> dict[int, float]:
        """Present log-ratios of all responses to prompts that micro-batches cut, by row."""
        places: dict[int, set[int]] = {}
        for number, batch in enumerate(batches):
            for group, _ in batch.branches:
                places.setdefault(items[group], set()).add(number)
        cut = sorted(item for item, numbers in places.items() if len(numbers) > 1)
        found: dict[int, float] = {}
        for item, logprobs in zip(cut, preview(data.groups(cut)), strict=True):
            for row, logprobs_T in zip(data.rows(item), logprobs, strict=True):
                found[row] = data.total(row, logprobs_T).item()
        return found

    def _pairs(self, data: OutcomeData, item: int) -> list[tuple[int, int, float]]:
        """(row of a right response, row of a wrong one, weight)."""
        rows = data.rows(item)
        right, wrong = ([row for row in rows if data.labels[row] == label] for label in (1.0, 0.0))
        pairs = [(one, other, data.weight(one) * data.weight(other)) for one, other in product(right, wrong)]
        if self._max_pairs is not None and len(pairs) > self._max_pairs:
            return random.Random(f"{self._seed}-{item}").sample(pairs, self._max_pairs)
        return pairs
