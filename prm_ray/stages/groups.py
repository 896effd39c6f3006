"""Rows of one part -> prompt groups: responses to the same prompt side by side, so that they share its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prm_ray.core.packing import PromptGroup


def group_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[list[int], PromptGroup]]:
    """(row numbers, their group) for each prompt. Rows need `prompt_id`, `prompt_tokens` and `response_tokens`."""
    by_prompt: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_prompt.setdefault(row["prompt_id"], []).append(number)
    return [
        (
            numbers,
            PromptGroup(rows[numbers[0]]["prompt_tokens"], [rows[number]["response_tokens"] for number in numbers]),
        )
        for numbers in by_prompt.values()
    ]
