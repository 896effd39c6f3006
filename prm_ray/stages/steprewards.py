"""Step rewards put into the rows of a table, in packed passes over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prm_ray.core.packing import PromptGroup
from prm_ray.errors import UserError
from prm_ray.publishedscorer import PublishedScorer
from prm_ray.stages.groups import group_rows

RewardsOfGroups = Callable[[Sequence[PromptGroup], list[list[list[int]]]], Sequence[Sequence[list[float]]]]
"""(groups, step ends [S] of each response of each group) -> step rewards [S] in the same order."""


def add_step_rewards(rows: list[dict[str, Any]], rewards_of: RewardsOfGroups) -> None:
    """Set `step_rewards` of rows with `prompt_tokens`, `response_tokens` and `step_ends`."""
    grouped = group_rows(rows)
    ends = [[rows[number]["step_ends"] for number in numbers] for numbers, _ in grouped]
    rewards = rewards_of([group for _, group in grouped], ends)
    for (numbers, _), of_group in zip(grouped, rewards, strict=True):
        for number, rewards_S in zip(numbers, of_group, strict=True):
            rows[number]["step_rewards"] = rewards_S


def add_published_rewards(
    rows: list[dict[str, Any]], solutions: Sequence[tuple[str, Sequence[str]]], scorer: PublishedScorer
) -> None:
    """Set `step_rewards` of the rows of (problem, steps), or `error` of those that the model cannot read."""
    asked = []
    for row, (problem, steps_S) in zip(rows, solutions, strict=True):
        try:
            asked.append((row, scorer.questions(problem, steps_S)))
        except UserError as error:
            row["error"] = f"not_scored: {error}"
    logits = scorer.step_logits([questions for _, questions in asked])
    for (row, _), logits_S in zip(asked, logits, strict=True):
        row["step_rewards"] = logits_S
