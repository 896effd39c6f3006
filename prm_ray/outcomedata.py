"""Labelled responses: the items that a reward model is trained on.

A response's reward is what a `Reading` says: the log-ratio to cached reference log-probs, or the logit of a head. What
is asked of the rewards is one of `outcomelosses.py` or `steplosses.py`.
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
Kind = Literal["log_ratio", "head"]
"""What is read at the tokens of a response: log-probs, whose reward is their sum minus the reference's; or logits of a
head, of which the last is the reward and one at the end of each step the reward of the step."""


@dataclass(frozen=True)
class Branches:
    """The B responses in a batch, as rows of the table."""

    rows: list[int]
    log_ratio_B: Tensor  # float32, with gradient; of a head its logits
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
        kind: Kind = "log_ratio",
        with_reference: bool = True,
        skip_uniform: bool = False,
        balance: Balance = "none",
    ):
        """`table` needs prompt_id, prompt_tokens, response_tokens, ref_logprobs (not for a head), correct (not null)
        and what the objective asks of it; it may have soft_label, which then is the label."""
        self._table, self._objective, self._kind = table, objective, kind
        self._with_reference = with_reference and kind == "log_ratio"
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
                reward = beta * self.total(row, logprobs_T).item()
                results += [(item, reward, self.labels[row])] * self._counts[row]
        return results

    def rows(self, item: int) -> list[int]:
        """The table's rows of an item: its distinct responses, in the order of its group."""
        return self._rows[item]

    def rows_of(self, items: Sequence[int], batch: PackedBatch) -> list[int]:
        """The row of each branch of a batch packed from `groups(items)`."""
        return [self._rows[items[group]][response] for group, response in batch.branches]

    def weight(self, row: int) -> float:
        return self._weights[row]

    def prompt(self, item: int) -> list[int]:
        return self._table["prompt_tokens"][self._rows[item][0]].as_py()

    def reference(self, row: int) -> Tensor:
        """log pi_ref of each response token, float32 [T] on the CPU; zeros without a reference."""
        if not self._with_reference:
            return torch.zeros(len(self._table["response_tokens"][row]))
        return torch.tensor(self._table["ref_logprobs"][row].as_py())

    def total(self, row: int, values_T: Tensor) -> Tensor:
        """The log-ratio of a response, or the logit at its end, from what was read at its tokens."""
        if self._kind == "head":
            return values_T[-1]
        return values_T.sum() - self.reference(row).sum().to(values_T.device)

    def step_values(self, row: int, values_T: Tensor) -> Tensor:
        """The log-ratio of each step, or the logit at its end, [S]."""
        ends = self._table["step_ends"][row].as_py()
        if self._kind == "head":
            return values_T[[end - 1 for end in ends]]
        log_ratio_T = values_T - self.reference(row).to(values_T.device)
        lengths = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return torch.stack([part.sum() for part in log_ratio_T.split(lengths)])

    def step_labels(self, row: int) -> list[float | None] | None:
        """The chance of being right at the end of each step, None where nobody knows; None for a response without."""
        return self._table["step_labels"][row].as_py()

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

    def num_response_tokens(self) -> int:
        """Of one pass over all sampled responses, equal ones as often as they were sampled."""
        tokens = self._table["response_tokens"]
        return sum(len(tokens[row]) for rows in self._all_rows for row in rows)

    def num_mismatched_tokens(self) -> int:
        """Of one pass over all of them, prompts included."""
        found = ((item, self.mismatched(item)) for item in range(len(self.sizes)))
        return sum(len(self.prompt(item)) + sum(len(tokens) for tokens, _ in each) for item, each in found if each)

    def branches(self, items: Sequence[int], batch: PackedBatch, logprobs_R: Tensor) -> Branches:
        """The responses of a batch packed from `groups(items)`, and what was read at their tokens."""
        rows = self.rows_of(items, batch)
        values = zip(rows, logprobs_R.split(batch.lengths), strict=True)
        log_ratio_B = torch.stack([self.total(row, values_T) for row, values_T in values])
        label_B = torch.tensor([self.labels[row] for row in rows], device=log_ratio_B.device)
        weight_B = torch.tensor([self._weights[row] for row in rows], device=log_ratio_B.device)
        return Branches(rows, log_ratio_B, label_B, weight_B)

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
