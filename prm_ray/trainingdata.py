"""What a training step is made of: items (a prompt with its responses), their packed groups, and their loss.

Two kinds with one interface: worked solutions for the warm-up, here, and labelled responses in `outcomedata.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from prm_ray.core.objectives import negative_log_likelihood
from prm_ray.core.packing import PackedBatch, PromptGroup
from prm_ray.trainer import Loss

Preview = Callable[[Sequence[PromptGroup]], list[list[Tensor]]]
"""Log-probs [T] of every response of every group under the present weights, without gradient (`Trainer.preview`)."""


class TrainingData(Protocol):
    sizes: list[int]
    """Responses of each item."""

    def count(self, items: Sequence[int]) -> float:
        """What the summed loss of these items is divided by."""
        ...

    def groups(self, items: Sequence[int]) -> list[PromptGroup]: ...

    def loss(self, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        """Loss over `batches`, packed from `groups(items)`; every worker previews as often as the others."""
        ...


class SolutionData:
    """Worked solutions: supervised fine-tuning, the mean of -log p over all solution tokens."""

    def __init__(self, prompts: list[list[int]], solutions: list[list[int]]):
        self._prompts, self._solutions = prompts, solutions
        self.sizes = [1] * len(prompts)

    def count(self, items: Sequence[int]) -> int:
        return sum(len(self._solutions[item]) for item in items)

    def groups(self, items: Sequence[int]) -> list[PromptGroup]:
        return [PromptGroup(self._prompts[item], [self._solutions[item]]) for item in items]

    def loss(self, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        return lambda batch, logprobs_R: negative_log_likelihood(logprobs_R)


def num_packed_tokens(data: TrainingData) -> int:
    """Tokens of one pass over the data: every item's prompt once, and its responses."""
    groups = (group for item in range(len(data.sizes)) for group in data.groups([item]))
    return sum(len(group.prompt) + sum(map(len, group.responses)) for group in groups)


def plan_steps(sizes: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """The items of every optimizer step of the run: a seeded shuffle an epoch, cut once `batch_size` responses are in.

    Known in advance, so a resumed run continues the same sequence and a schedule knows its end. The last step of an
    epoch may be smaller.
    """
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(sizes)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        step: list[int] = []
        for item in order:
            step.append(item)
            if sum(sizes[each] for each in step) >= batch_size:
                steps.append(step)
                step = []
        if step:
            steps.append(step)
    return steps


def share(items: Sequence[int], rank: int, num_workers: int) -> list[int]:
    """The items of a step that fall to one worker; may be none."""
    return list(items[rank::num_workers])
