"""Accuracy against how much there was to learn from: methods that differ in one amount and nothing else."""

from __future__ import annotations

import json
from typing import Any

from prm_ray.compare.methods import Method

AMOUNTS = {
    "select.num_responses": ("Responses a problem", "generate.num_samples"),
    "select.problem_share": ("Share of the training problems", None),
    "generate.num_samples": ("Responses a problem", None),
    "problems.num_train": ("Training problems", None),
}
"""Setting -> name of the axis, and the setting that none of it stands for."""


def scaling_curves(methods: list[Method]) -> list[dict[str, Any]]:
    """For each amount that some methods differ in alone: axis, and (amount, name of the method), least first."""
    curves = []
    for key, (axis, all_of) in AMOUNTS.items():
        alike: dict[str, list[tuple[float, str]]] = {}
        for method in methods:
            settings = method.settings
            amount = settings.get(key)
            amount = settings.get(all_of) if amount is None and all_of else amount
            if amount is not None:
                for rest in _rests(settings, key, amount):
                    alike.setdefault(rest, []).append((float(amount), method.name))
        curves += [
            {"setting": key, "axis": axis, "points": sorted(points)}
            for points in alike.values()
            if len({amount for amount, _ in points}) > 1
        ]
    return curves


def _rests(settings: dict[str, Any], key: str, amount: float) -> set[str]:
    """What must be alike. A single response to a problem is all right or all wrong, so those that train on it cannot
    leave such problems out: they stand beside those that do."""
    rest = {other: value for other, value in settings.items() if other != key}
    alike = [rest]
    if key == "select.num_responses" and amount == 1:
        alike.append(rest | {"train.skip_uniform_prompts": True})
    return {json.dumps(each, sort_keys=True) for each in alike}
