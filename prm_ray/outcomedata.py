"""Labelled responses with cached reference log-probs: the items that an implicit PRM is trained on.

What is asked of them is one of `outcomelosses.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from prm_ray.core.metrics import auc, within_problem_auc
from prm_ray.core.objectives import cross_entropy
from prm_ray.core.packing import PackedBatch, PromptGroup
from prm_ray.outcomelosses import OutcomeLoss
from prm_ray.tables import outcome_labels
from prm_ray.trainer import Loss
from prm_ray.trainingdata import Preview

if TYPE_CHECKING:
    import pyarrow as pa

Balance = Literal["none", "dataset", "prompt"]


@dataclass(frozen=True)
class Branches:
    """The B responses in a batch, as rows of the table."""

    rows: list[int]
    log_ratio_B: Tensor  # float32, with gradient
    label_B: Tensor  # float32: 1 right, 0 wrong, or the chance of being right
    weight_B: Tensor  # float32, 1 a sampled response unless balanced


class OutcomeData:
    """Labelled responses grouped by prompt; tokens are read from Arrow when asked for.

    A response sampled several times for a prompt is computed once and weighs as often as it was sampled: the same loss
    and gradient for less. `skip_uniform` leaves out prompts whose responses are all right or all wrong, which say
    nothing about telling responses to one prompt apart. `balance` gives right and wrong responses the same total
    weight, over all prompts or within each (arXiv 2412.01981 section 4.2, by weights and not by leaving responses out).
    """

    def __init__(
        self,
        table: pa.Table,
        objective: OutcomeLoss,
        *,
        with_reference: bool = True,
        skip_uniform: bool = False,
        balance: Balance = "none",
    ):
        """`table` needs prompt_id, prompt_tokens, response_tokens, ref_logprobs, correct (not null); it may have
        soft_label, which then is the label."""
        self._table, self._objective, self._with_reference = table, objective, with_reference
        self.labels: list[float] = outcome_labels(table).to_pylist()
        skip_uniform = skip_uniform or objective.needs_both
        prompts = [merged for merged in self._merged() if not skip_uniform or len(self._labels_of(merged)) > 1]
        self._rows = [list(merged) for merged in prompts]
        self._all_rows = [[row for rows in merged.values() for row in rows] for merged in prompts]
        self._counts = {row: len(rows) for merged in prompts for row, rows in merged.items()}
        self._weights = {row: float(count) for row, count in self._counts.items()}
        for rows in {"none": [], "dataset": [list(self._counts)], "prompt": self._rows}[balance]:
            self._weights |= self._balanced(rows)
        self.sizes = [len(rows) for rows in self._all_rows]

    def _labels_of(self, rows: Iterable[int]) -> set[float]:
        return {self.labels[row] for row in rows}

    def _merged(self) -> list[dict[int, list[int]]]:
        """For each prompt: row of a distinct response -> all rows that have it (and are judged the same)."""
        by_prompt: dict[str, dict[tuple[bytes, float], list[int]]] = {}
        tokens = self._table["response_tokens"]
        for row, prompt_id in enumerate(self._table["prompt_id"].to_pylist()):
            key = (tokens[row].values.to_numpy().tobytes(), self.labels[row])
            by_prompt.setdefault(prompt_id, {}).setdefault(key, []).append(row)
        return [{rows[0]: rows for rows in responses.values()} for responses in by_prompt.values()]

    def _balanced(self, rows: Sequence[int]) -> dict[int, float]:
        """Weights that add up to the number of responses, half of them for each label if both are there."""
        is_right = {row: self.labels[row] > 0.5 for row in rows}
        totals = {label: sum(self._counts[row] for row in rows if is_right[row] == label) for label in (True, False)}
        if not all(totals.values()):
            return {}
        half = sum(totals.values()) / 2
        return {row: self._counts[row] * half / totals[is_right[row]] for row in rows}

    def count(self, items: Sequence[int]) -> float:
        return self._objective.count(self, items)

    def groups(self, items: Sequence[int]) -> list[PromptGroup]:
        return [PromptGroup(self.prompt(item), [self._tokens(row) for row in self._rows[item]]) for item in items]

    def loss(self, items: Sequence[int], batches: Sequence[PackedBatch], preview: Preview) -> Loss:
        return self._objective.loss(self, items, batches, preview)

    def rewards(self, items: Sequence[int], beta: float, preview: Preview) -> list[tuple[int, float, float]]:
        """(item, reward, label) of every sampled response of these items under the present weights."""
        results: list[tuple[int, float, float]] = []
        for item, logprobs in zip(items, preview(self.groups(items)), strict=True):
            for row, logprobs_T in zip(self._rows[item], logprobs, strict=True):
                reward = beta * (logprobs_T.sum().item() - self.reference(row).sum().item())
                results += [(item, reward, self.labels[row])] * self._counts[row]
        return results

    def rows(self, item: int) -> list[int]:
        """The table's rows of an item: its distinct responses, in the order of its group."""
        return self._rows[item]

    def weight(self, row: int) -> float:
        return self._weights[row]

    def prompt(self, item: int) -> list[int]:
        return self._table["prompt_tokens"][self._rows[item][0]].as_py()

    def reference(self, row: int) -> Tensor:
        """log pi_ref of each response token, float32 [T] on the CPU; zeros without a reference."""
        logprobs_T = torch.tensor(self._table["ref_logprobs"][row].as_py())
        return logprobs_T if self._with_reference else torch.zeros_like(logprobs_T)

    def mismatched(self, item: int) -> list[tuple[list[int], float]]:
        """Responses of other prompts scored behind this one: tokens, and log pi_ref of the whole (0 without)."""
        rows = [row for row in self._all_rows[item] if self._table["mismatched_tokens"][row].is_valid]
        return [
            (
                self._table["mismatched_tokens"][row].as_py(),
                self._table["mismatched_logprob"][row].as_py() if self._with_reference else 0.0,
            )
            for row in rows
        ]

    def branches(self, items: Sequence[int], batch: PackedBatch, logprobs_R: Tensor) -> Branches:
        rows = [self._rows[items[group]][response] for group, response in batch.branches]
        policy_B = torch.stack([values.sum() for values in logprobs_R.split(batch.lengths)])
        reference_B = torch.stack([self.reference(row).sum() for row in rows]).to(policy_B.device)
        label_B = torch.tensor([self.labels[row] for row in rows], device=policy_B.device)
        weight_B = torch.tensor([self._weights[row] for row in rows], device=policy_B.device)
        return Branches(rows, policy_B - reference_B, label_B, weight_B)

    def _tokens(self, row: int) -> list[int]:
        return self._table["response_tokens"][row].as_py()


def held_out_metrics(results: Sequence[tuple[int, float, float]]) -> dict[str, Any]:
    """CE loss, accuracy and AUC (over all, and within a problem) of (item, reward, label) triples.

    A soft label counts in the loss as it is, elsewhere as right above 0.5.
    """
    if not results:
        return {}
    _, rewards, labels = (list(column) for column in zip(*results, strict=True))
    loss = cross_entropy(torch.tensor(rewards), torch.tensor(labels), 1.0).item() / len(rewards)
    correct = [label > 0.5 for label in labels]
    by_item: dict[int, tuple[list[float], list[bool]]] = {}
    for (item, reward, _), is_right in zip(results, correct, strict=True):
        rewards_of, labels_of = by_item.setdefault(item, ([], []))
        rewards_of.append(reward)
        labels_of.append(is_right)
    accuracy = sum((reward > 0) == is_right for reward, is_right in zip(rewards, correct, strict=True)) / len(rewards)
    return {
        "held_out_loss": loss,
        "held_out_accuracy": accuracy,
        "held_out_auc": auc(rewards, correct),
        "held_out_auc_within": within_problem_auc(list(by_item.values())).mean,
    }
