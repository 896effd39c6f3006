"""Draws how the cost of scoring grows: `python -m benchmarks.plots benchmarks/sweep.json docs/scoring_cost.png`

The JSON is that of `python -m benchmarks.scoring --sweep --out benchmarks/sweep.json`. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LINES = {"padded": ("padded batches, full logits", "#d97706"), "both": ("prm_ray", "#2563eb")}
AXES = {
    "n": "candidates of the prompt",
    "prompt": "tokens of the prompt",
    "response": "tokens of a candidate",
}


def draw(content: dict[str, Any], path: Path) -> None:
    """Three panels, one a quantity that varies; seconds for all candidates of one prompt, both models."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        _panel(panel, [point for point in content["sweep"] if point["axis"] == axis and "seconds" in point])
        panel.set_xlabel(label)
        panel.set_title(_others(content["setting"], axis), fontsize=9, color="#4b5563")
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(_title(content), fontsize=11)
    figure.savefig(path, dpi=150, facecolor="white")


def _panel(panel: Any, points: list[dict[str, Any]]) -> None:
    values = sorted({point["value"] for point in points})
    for way, (label, color) in LINES.items():
        line = sorted((point["value"], point["seconds"]) for point in points if point["way"] == way)
        if not line:
            continue
        panel.plot(*zip(*line, strict=True), color=color, marker="o", markersize=4, label=label)
        panel.annotate(
            f"{line[-1][1]:.3g} s", line[-1], (0, 6), textcoords="offset points", ha="center", color=color, fontsize=9
        )
    panel.set_xticks(values, [str(value) if _has_room(value, values) else "" for value in values])
    panel.set_xlim(0, values[-1] * 1.1)
    panel.set_ylim(0, max(point["seconds"] for point in points) * 1.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e5e7eb")
    panel.set_axisbelow(True)


def _has_room(value: int, values: list[int]) -> bool:
    """Labels of small values would lie on each other: the axis is linear, so that straight means linear growth."""
    return value >= values[-1] / 12


def _others(setting: dict[str, Any], axis: str) -> str:
    names = {"n": "{} candidates", "prompt": "prompt of {}", "response": "candidates of {} tokens"}
    return ", ".join(text.format(setting[name]) for name, text in names.items() if name != axis)


def _title(content: dict[str, Any]) -> str:
    setting, machine = content["setting"], content["machine"]
    where = machine["device"] if machine["gpu"] else f"{machine['device']}, {setting['threads']} threads"
    return f"Time to score all candidates of a prompt with policy and reference: {setting['model']}, {where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    if not args.sweep.is_file() or "sweep" not in (content := json.loads(args.sweep.read_text(encoding="utf-8"))):
        parser.error(f"{args.sweep}: must be the JSON that benchmarks.scoring --sweep --out writes")
    draw(content, args.picture)


if __name__ == "__main__":
    main()
