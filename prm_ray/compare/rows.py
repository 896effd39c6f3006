"""A chart with a row a method: figure, interval and seeds, in one panel or in several side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prm_ray.compare.ink import Ink, group_colors, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _MARGIN = 0.27, 1.15
"""Inches of a row, and of axes and title together."""
_DASHES: tuple[Any, ...] = ("--", ":", "-.")


@dataclass(frozen=True)
class Panel:
    title: str
    figure_of: Callable[[dict[str, Any]], dict[str, Any] | None]
    """A method's value, low, high and by_seed, as shares; None = it has none."""
    lines: dict[str, float] = field(default_factory=dict)
    """Name -> share to compare with."""


def draw_rows(data: dict[str, Any], ink: Ink, panels: list[Panel]) -> Figure:
    rows = _rows(data)
    all_axes = new_axes(ink, 9.6, _ROW * len(rows) + _MARGIN, columns=len(panels))
    colors = group_colors(data, ink)
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.grid(axis="y", visible=False)
        for place, method in enumerate(rows):
            figures = None if isinstance(method, str) else panel.figure_of(method)
            if figures and not isinstance(method, str) and figures["value"] is not None:
                _dot(axes, place, figures, colors[method["group"]])
        for (name, share), dashes in zip(panel.lines.items(), _DASHES, strict=False):
            axes.axvline(100 * share, color=ink.soft, linestyle=dashes, linewidth=1.2, label=name, zorder=1)
        axes.set_title(panel.title, fontsize=9.5, color=ink.soft, loc="left")
        if len(panels) > 1:
            axes.set_xlabel(f"dashed: {', '.join(panel.lines)}")
    figure = all_axes[0].figure
    if len(panels) == 1:
        figure.legend(loc="outside lower center", ncol=3, frameon=False, labelcolor=ink.soft, fontsize=9)
    _name_rows(all_axes[0], rows, ink)
    return figure


def _rows(data: dict[str, Any]) -> list[dict[str, Any] | str]:
    """Methods group by group, each group behind its heading (where there are several)."""
    groups = dict.fromkeys(method["group"] for method in data["methods"])
    rows: list[dict[str, Any] | str] = []
    for group in groups:
        rows += [data["groups"].get(group, group)] if len(groups) > 1 else []
        rows += [method for method in data["methods"] if method["group"] == group]
    return rows


def _dot(axes: Any, place: int, figures: dict[str, Any], color: str) -> None:
    if figures["low"] is not None and figures["high"] is not None:
        axes.plot([100 * figures["low"], 100 * figures["high"]], [place, place], color=color, linewidth=2, alpha=0.45)
    seeds = [100 * value for value in figures["by_seed"] if value is not None]
    if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), "|", color=color, markersize=9, markeredgewidth=1.4)
    axes.plot(100 * figures["value"], place, "o", color=color, markersize=6)


def _name_rows(axes: Any, rows: list[dict[str, Any] | str], ink: Ink) -> None:
    axes.set_ylim(len(rows) - 0.4, -0.6)
    names = [row if isinstance(row, str) else row["label"] for row in rows]
    axes.set_yticks(range(len(rows)), names)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        heading = isinstance(row, str)
        label.set(color=ink.text if not heading else ink.soft, fontweight="bold" if heading else "normal", fontsize=9.5)
