"""What a training step is made of: items (a prompt with its responses), their packed groups, and their loss.

Two kinds with one interface: labelled responses for the implicit PRM, worked solutions for the warm-up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from prm_ray.core.metrics import auc, within_problem_auc
from prm_ray.core.objectives import cross_entropy, negative_log_likelihood
from prm_ray.core.packing import PackedBatch, PromptGroup, pack
from prm_ray.trainer import Loss, Trainer

if TYPE_CHECKING:
    import pyarrow as pa


class TrainingData(Protocol):
    sizes: list[int]
    """Responses of each item."""

    def count(self, items: Sequence[int]) -> int:
        """What the summed loss of these items is divided by."""
        ...

    def groups(self, items: Sequence[int]) -> list[PromptGroup]: ...

    def loss(self, items: Sequence[int]) -> Loss:
        """Loss over batches packed from `groups(items)`."""
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

    def loss(self, items: Sequence[int]) -> Loss:
        return lambda batch, logprobs_R: negative_log_likelihood(logprobs_R)


class OutcomeData:
    """Labelled responses with cached reference log-probs, grouped by prompt; tokens are read from Arrow when asked for.

    A response sampled several times for a prompt is computed once and weighs as often as it was sampled: the same loss
    and gradient for less. `skip_uniform` leaves out prompts whose responses are all right or all wrong, which say
    nothing about telling responses to one prompt apart. `balance` gives the right and the wrong responses of a prompt
    the same total weight, so that rare right answers do not push the reward of everything down (the instance-wise
    balance of arXiv 2412.01981 section 4.2, by weights instead of leaving responses out).
    """

    def __init__(self, table: pa.Table, beta: float, skip_uniform: bool = False, balance: bool = False):
        """`table` needs prompt_id, prompt_tokens, response_tokens, ref_logprobs, correct (not null)."""
        self._table, self._beta = table, beta
        self.labels: list[bool] = table["correct"].to_pylist()
        self._reference = [float(sum(values)) for values in table["ref_logprobs"].to_pylist()]
        prompts = [
            counts for counts in self._merged() if not skip_uniform or len({self.labels[row] for row in counts}) > 1
        ]
        self._rows = [list(counts) for counts in prompts]
        self._counts = {row: count for counts in prompts for row, count in counts.items()}
        self._weights = {row: float(count) for row, count in self._counts.items()}
        if balance:
            for counts in prompts:
                self._weights |= self._balanced(counts)
        self.sizes = [sum(counts.values()) for counts in prompts]

    def _merged(self) -> list[dict[int, int]]:
        """For each prompt: row of a distinct response -> how often it was sampled (and judged the same)."""
        by_prompt: dict[str, dict[tuple[bytes, bool], list[int]]] = {}
        tokens = self._table["response_tokens"]
        for row, prompt_id in enumerate(self._table["prompt_id"].to_pylist()):
            key = (tokens[row].values.to_numpy().tobytes(), self.labels[row])
            by_prompt.setdefault(prompt_id, {}).setdefault(key, []).append(row)
        return [{rows[0]: len(rows) for rows in responses.values()} for responses in by_prompt.values()]

    def _balanced(self, counts: dict[int, int]) -> dict[int, float]:
        """Weights that add up to the number of responses, half of them for each label if both are there."""
        totals = {
            label: sum(count for row, count in counts.items() if self.labels[row] == label) for label in (True, False)
        }
        if not all(totals.values()):
            return {}
        half = sum(totals.values()) / 2
        return {row: count * half / totals[self.labels[row]] for row, count in counts.items()}

    def count(self, items: Sequence[int]) -> int:
        return sum(self.sizes[item] for item in items)

    def groups(self, items: Sequence[int]) -> list[PromptGroup]:
        return [
            PromptGroup(
                self._table["prompt_tokens"][self._rows[item][0]].as_py(),
                [self._table["response_tokens"][row].as_py() for row in self._rows[item]],
            )
            for item in items
        ]

    def loss(self, items: Sequence[int]) -> Loss:
        def summed(batch: PackedBatch, logprobs_R: Tensor) -> Tensor:
            rows = self._branch_rows(items, batch)
            log_ratio_B, correct_B = self._log_ratios(rows, batch, logprobs_R)
            weight_B = torch.tensor([self._weights[row] for row in rows], device=log_ratio_B.device)
            return cross_entropy(log_ratio_B, correct_B, self._beta, weight_B)

        return summed

    def rewards(self, items: Sequence[int], trainer: Trainer, token_budget: int) -> list[tuple[int, float, bool]]:
        """(item, reward, correct) of every sampled response of these items under the present weights."""
        results: list[tuple[int, float, bool]] = []
        for batch in pack(self.groups(items), token_budget):
            rows = self._branch_rows(items, batch)
            log_ratio_B, correct_B = self._log_ratios(rows, batch, trainer.logprobs(batch))
            owners = [items[group] for group, _ in batch.branches]
            rewards = (self._beta * log_ratio_B).tolist()
            for row, result in zip(rows, zip(owners, rewards, correct_B.tolist(), strict=True), strict=True):
                results += [result] * self._counts[row]
        return results

    def _branch_rows(self, items: Sequence[int], batch: PackedBatch) -> list[int]:
        return [self._rows[items[group]][response] for group, response in batch.branches]

    def _log_ratios(self, rows: list[int], batch: PackedBatch, logprobs_R: Tensor) -> tuple[Tensor, Tensor]:
        """Log-ratio and label of each branch of a batch, [B]."""
        policy_B = torch.stack([values.sum() for values in logprobs_R.split(batch.lengths)])
        reference_B = torch.tensor([self._reference[row] for row in rows], device=policy_B.device)
        correct_B = torch.tensor([self.labels[row] for row in rows], device=policy_B.device)
        return policy_B - reference_B, correct_B


def held_out_metrics(results: Sequence[tuple[int, float, bool]]) -> dict[str, Any]:
    """Loss, accuracy and AUC (over all, and within a problem) of (item, reward, correct) triples."""
    if not results:
        return {}
    _, rewards, correct = (list(column) for column in zip(*results, strict=True))
    loss = cross_entropy(torch.tensor(rewards), torch.tensor(correct), 1.0).item() / len(rewards)
    by_item: dict[int, tuple[list[float], list[bool]]] = {}
    for item, reward, label in results:
        rewards_of, labels_of = by_item.setdefault(item, ([], []))
        rewards_of.append(reward)
        labels_of.append(label)
    accuracy = sum((reward > 0) == label for reward, label in zip(rewards, correct, strict=True)) / len(rewards)
    return {
        "held_out_loss": loss,
        "held_out_accuracy": accuracy,
        "held_out_auc": auc(rewards, correct),
        "held_out_auc_within": within_problem_auc(list(by_item.values())).mean,
    }


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
