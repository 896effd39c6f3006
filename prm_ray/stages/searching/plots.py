"""Accuracy of a search against the tokens it took: as geometry for the SVG in report.html, and as accuracy.png."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prm_ray.stages.ink import LIGHT, Ink, end_labels, new_axes
from prm_ray.stages.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, spread, ticks_between
from prm_ray.stages.searching.names import PICK_NAMES, arm_name, name_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABEL_GAP = 17


@dataclass(frozen=True)
class Series:
    """Points of one strategy, by rising tokens."""

    label: str
    css: str
    """`s0` and so on: the colour of that place in `Ink.series`; `soft` = grey."""
    points: list[dict[str, Any]]
    """Each with tokens, value, low, high, title."""
    dashes: str = ""
    """`--` or `:`; the curve of a bound, or of another way of picking, has no band."""
    has_band: bool = False

    def color(self, ink: Ink) -> str:
        return ink.soft if self.css == "soft" else ink.series[int(self.css[1:])]


def accuracy_series(report: dict[str, Any]) -> list[Series]:
    """Best-of-N by the configured pick, by majority and by an oracle; then a line a strategy over its sizes."""
    how, curve = report["pick"], report["best_of_n"]
    found = []
    if curve:
        picked = {"best": "best reward", "weighted_vote": "weighted vote", "majority": "majority vote"}[how]
        found.append(_best_of_n(curve, f"Best-of-N, {picked}", how, "s0", has_band=True))
        if how != "majority":
            found.append(_best_of_n(curve, "Majority vote of N", "majority", "soft", ":"))
        found.append(_best_of_n(curve, "Oracle of N", "oracle", "soft", "--"))
    strategies = dict.fromkeys(arm["strategy"] for arm in report["arms"])
    shown = [strategy for strategy in strategies if strategy != "best_of_n" or not curve]
    for number, strategy in enumerate(shown):
        arms = [arm for arm in report["arms"] if arm["strategy"] == strategy]
        points = [_point(arm, how, arm_name(arm)) for arm in arms]
        css = f"s{1 + number % (len(LIGHT.series) - 1)}"
        found.append(Series(name_of(strategy), css, sorted(points, key=lambda point: point["tokens"])))
    return found


def _best_of_n(
    curve: list[dict[str, Any]], label: str, how: str, css: str, dashes: str = "", has_band: bool = False
) -> Series:
    points = [_point(each, how, f"{label}, N = {each['n']}") for each in curve]
    return Series(label, css, points, dashes, has_band)


def _point(figures: dict[str, Any], how: str, name: str) -> dict[str, Any]:
    accuracy, tokens = figures["accuracy"][how], figures["tokens_per_problem"]
    value, low, high = (100 * accuracy[key] for key in ("value", "low", "high"))
    title = f"{name}: {value:.1f} % [{low:.1f}, {high:.1f}], {tokens:,.0f} tokens a problem"
    return accuracy | {"tokens": max(tokens, 1.0), "title": title}  # an arm that failed has none, and log(0) is nowhere


def token_ticks(low: float, high: float) -> list[int]:
    """1, 2, 5, 10 ... from below `low` to above `high`; of many decades only the powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= 4 else (1,)
    ticks = [digit * 10**power for power in range(first, last + 1) for digit in digits]
    start = max(tick for tick in ticks if tick <= low)
    end = min(tick for tick in ticks if tick >= high)
    return [tick for tick in ticks if start <= tick <= (end if end > start else 10 * end)]


def accuracy_chart(report: dict[str, Any]) -> dict[str, Any] | None:
    """Geometry in SVG units: ticks; a line a strategy with dots, band or whiskers; end labels that do not touch."""
    lines = accuracy_series(report)
    if not lines:
        return None
    points = [point for line in lines for point in line.points]
    ticks = ticks_between(min(point["low"] for point in points), max(point["high"] for point in points))
    x_ticks = token_ticks(min(point["tokens"] for point in points), max(point["tokens"] for point in points))
    x = scale(math.log(x_ticks[0]), math.log(x_ticks[-1]), LEFT, WIDTH - RIGHT)
    y = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = [_draw(line, lambda tokens: x(math.log(tokens)), y) for line in lines]
    places = spread([item["dots"][-1]["y"] for item in drawn], _LABEL_GAP, HEIGHT - BOTTOM)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": [{"x": x(math.log(tokens)), "label": f"{tokens:,}"} for tokens in x_ticks],
        "y_ticks": [{"y": y(value), "label": f"{100 * value:.0f} %"} for value in ticks],
        "lines": [item | {"label_y": place} for item, place in zip(drawn, places, strict=True)],
    }


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Values from `low` to `high` -> places from `start` to `end`, in SVG units; the start where both are one."""
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def _draw(line: Series, x: Callable[[float], float], y: Callable[[float], float]) -> dict[str, Any]:
    dots = [
        {"x": x(point["tokens"]), "title": point["title"]}
        | {"y": y(point["value"]), "low": y(point["low"]), "high": y(point["high"])}
        for point in line.points
    ]
    outline = [f"{dot['x']},{dot['high']}" for dot in dots] + [f"{dot['x']},{dot['low']}" for dot in reversed(dots)]
    return {
        "label": line.label,
        "css": line.css,
        "dashes": line.dashes,
        "dots": dots,
        "path": " ".join(f"{dot['x']},{dot['y']}" for dot in dots),
        "band": " ".join(outline) if line.has_band else "",
        "has_whiskers": not line.has_band and not line.dashes,
    }


def accuracy_figure(report: dict[str, Any], ink: Ink) -> Figure | None:
    lines = accuracy_series(report)
    if not lines:
        return None
    axes = new_axes(ink, 9.6, 5.0, f"% of {report['num_problems']} problems answered right, by tokens sampled")
    labels = []
    for line in lines:
        color = line.color(ink)
        tokens = [point["tokens"] for point in line.points]
        value, low, high = ([100 * point[key] for point in line.points] for key in ("value", "low", "high"))
        axes.plot(tokens, value, line.dashes or "-o", color=color, markersize=4.5, linewidth=1.6)
        if line.has_band:
            axes.fill_between(tokens, low, high, color=color, alpha=0.12, linewidth=0)
        elif not line.dashes:
            axes.vlines(tokens, low, high, color=color, alpha=0.35, linewidth=1.2)
        labels.append((tokens[-1], value[-1], line.label, color))
    ticks = token_ticks(*_bounds([point["tokens"] for line in lines for point in line.points]))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(
        f"tokens sampled a problem (bands and strokes: 95 % intervals; picking {PICK_NAMES[report['pick']]})"
    )
    axes.set_ylabel("% of problems answered right")
    end_labels(axes, labels)
    return axes.figure


def _bounds(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)
