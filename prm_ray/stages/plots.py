"""Accuracy against N: as geometry for the SVG in report.html, and as accuracy.png."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_ray.stages.measure import PASS_AT_1

WIDTH, HEIGHT = 960, 440
LEFT, RIGHT, TOP, BOTTOM = 52, 228, 16, 48
_LABEL_GAP = 17
_NAMES = {"majority": "Majority vote", "oracle": "Oracle (pass@N)", PASS_AT_1: "One sample (pass@1)"}
_FAMILIES = {
    "prm_without_reference": "PRM without reference",
    "prm_with_reference": "PRM with reference",
    "prm": "PRM best-of-N",
    "weighted": "PRM-weighted vote",
    "ref_logprob": "Untrained reference",
}
"""Begin of a method, before its aggregation; the longer ones first."""


@dataclass(frozen=True)
class Line:
    """One method of the chart; the colour is that of the PNG, the page has its own for light and dark."""

    method: str
    label: str
    css: str
    color: str
    dashed: bool = False


def label_of(method: str) -> str:
    """`prm_prefix_min` -> `PRM best-of-N (prefix min)`."""
    if method in _NAMES:
        return _NAMES[method]
    for family, name in _FAMILIES.items():
        if method.startswith(f"{family}_"):
            return f"{name} ({method.removeprefix(f'{family}_').replace('_', ' ')})"
    return method


def main_lines(aggregation: str) -> list[Line]:
    """The lines of the chart; the table of the report has every method."""
    methods = (
        (f"prm_{aggregation}", "c-prm", "#2563eb", False),
        (f"weighted_{aggregation}", "c-vote", "#0d9488", False),
        ("majority", "c-majority", "#d97706", False),
        ("ref_logprob_mean", "c-ref", "#a855f7", False),
        ("oracle", "c-oracle", "#6b7280", True),
    )
    return [Line(method, label_of(method), css, color, dashed) for method, css, color, dashed in methods]


def chart(report: dict[str, Any]) -> dict[str, Any]:
    """Geometry of the chart in SVG units: ticks; a band, a path and dots a line; end labels that do not touch."""
    sizes, lines = report["sizes"], main_lines(report["aggregation"])
    low, high = _value_range(report, lines)
    ticks = ticks_between(low, high)

    def x(n: int) -> float:
        span = math.log2(sizes[-1]) - math.log2(sizes[0])
        share = (math.log2(n) - math.log2(sizes[0])) / span if span else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = [_draw(line, report["accuracy"][line.method], sizes, (x, y)) for line in lines]
    ends = [item["dots"][-1]["y"] for item in drawn]
    for item, place in zip(drawn, spread(ends, _LABEL_GAP, HEIGHT - BOTTOM), strict=True):
        item["label_y"] = round(place, 1)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": [{"x": x(n), "label": n} for n in sizes],
        "y_ticks": [{"y": y(value), "label": f"{100 * value:.0f} %"} for value in ticks],
        "base_y": y(report[PASS_AT_1]["value"]),
        "lines": drawn,
    }


def write_png(report: dict[str, Any], path: Path) -> None:
    """accuracy.png: the same lines, with interval bands; pass@k dashed, as the bound nobody can pass."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, sizes = figure.subplots(), report["sizes"]
    for line in main_lines(report["aggregation"]):
        points = [report["accuracy"][line.method][str(n)] for n in sizes]
        value, low, high = ([100 * point[key] for point in points] for key in ("value", "low", "high"))
        axes.plot(sizes, value, "--" if line.dashed else "-o", color=line.color, label=line.label, markersize=4)
        if not line.dashed:
            axes.fill_between(sizes, low, high, color=line.color, alpha=0.1, linewidth=0)
    axes.axhline(
        100 * report[PASS_AT_1]["value"], color="#9ca3af", linewidth=1, linestyle=":", label=label_of(PASS_AT_1)
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_xlabel("N, candidates a problem")
    axes.set_ylabel("Problems answered right (%)")
    axes.set_title(f"Accuracy over {report['num_problems']} test problems (bands: 95 % bootstrap)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def _draw(line: Line, figures: dict[str, Any], sizes: list[int], axes: tuple[Any, Any]) -> dict[str, Any]:
    x, y = axes
    points = [(n, figures[str(n)]) for n in sizes]
    dots = [
        {
            "x": x(n),
            "y": y(point["value"]),
            "title": f"{line.label}, N = {n}: {100 * point['value']:.1f} % "
            f"[{100 * point['low']:.1f}, {100 * point['high']:.1f}]",
        }
        for n, point in points
    ]
    outline = [(x(n), y(point["high"])) for n, point in points]
    outline += [(x(n), y(point["low"])) for n, point in reversed(points)]
    return {
        "label": line.label,
        "css": line.css,
        "dashed": line.dashed,
        "dots": dots,
        "path": " ".join(f"{dot['x']},{dot['y']}" for dot in dots),
        "band": " ".join(f"{left},{top}" for left, top in outline),
    }


def _value_range(report: dict[str, Any], lines: list[Line]) -> tuple[float, float]:
    points = [point for line in lines for point in report["accuracy"][line.method].values()]
    return min(point["low"] for point in points), max(point["high"] for point in points)


def ticks_between(low: float, high: float) -> list[float]:
    """4 to 9 round numbers from below `low` to above `high`, within 0 .. 1."""
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 7)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(number * step, 4) for number in range(first, last + 1)]


def spread(places: list[float], gap: float, limit: float) -> list[float]:
    """Move labels apart, up and down, to be `gap` from each other and none above `limit`; their order stays."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    limit = min(moved[-1], limit)
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    result = [0.0] * len(places)
    for index, place in zip(order, moved, strict=True):
        result[index] = round(place, 4)
    return result
