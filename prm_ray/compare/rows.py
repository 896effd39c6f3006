"""A chart with a row a method: figure, interval and seeds, in one panel or in several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from prm_ray.stages.ink import Ink, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _ROW, _LINE, _LETTER, _MARGIN = 9.6, 0.27, 0.17, 0.075, 1.2
"""Inches of a picture across, of a row, of a line of text and (at most, on average) a letter of it, and of axes and
title together."""
_NAME_LETTERS = 46
"""Longer names of methods take a second line."""
_DASHES: tuple[Any, ...] = ("--", ":", "-.")


@dataclass(frozen=True)
class Panel:
    title: str
    figure_of: Callable[[dict[str, Any]], dict[str, Any] | None]
    """A method's value, low, high and by_seed, as shares or counts; None = it has none."""
    lines: dict[str, float] = field(default_factory=dict)
    """Name -> share to compare with."""
    is_count: bool = False
    """Counts of any size, on a logarithmic axis with the number beside each; else shares, in percent."""


def draw_rows(data: dict[str, Any], ink: Ink, title: str, panels: list[Panel], note: str = "") -> Figure:
    """`note` stands below the panels."""
    rows = _rows(data)
    names = [wrap(row if isinstance(row, str) else row["label"], _NAME_LETTERS) for row in rows]
    longest = max(len(line) for name in names for line in name)
    letters = int((_WIDTH - _LETTER * longest) / len(panels) / _LETTER) - 3
    titles = [wrap(panel.title, letters) for panel in panels]
    height = len(rows) * max(_ROW, _LINE * max(map(len, names))) + _MARGIN + _LINE * max(map(len, titles))
    notes = wrap(note, int(_WIDTH / _LETTER))
    all_axes = new_axes(ink, _WIDTH, height + _LINE * len(notes), title, columns=len(panels))
    for axes, panel, lines in zip(all_axes, panels, titles, strict=True):
        _draw_panel(axes, panel, rows, ink, _group_colors(data, ink))
        axes.set_title("\n".join(lines), fontsize=9.5, color=ink.soft, loc="left")
        if len(panels) > 1 and panel.lines:
            axes.set_xlabel(f"dashed: {', '.join(panel.lines)}")
    figure = all_axes[0].figure
    if len(panels) == 1:
        figure.legend(loc="outside lower center", ncol=3, frameon=False, labelcolor=ink.soft, fontsize=9)
    if note:
        figure.supxlabel("\n".join(notes), x=0.012, ha="left", fontsize=9.5, color=ink.soft)
    _name_rows(all_axes[0], rows, ["\n".join(name) for name in names], ink)
    return figure


def _draw_panel(axes: Any, panel: Panel, rows: list[dict[str, Any] | str], ink: Ink, colors: dict[str, str]) -> None:
    axes.grid(axis="y", visible=False)
    found = []
    for place, method in enumerate(rows):
        figures = None if isinstance(method, str) else panel.figure_of(method)
        if figures and not isinstance(method, str) and figures["value"] is not None:
            found.append(figures["value"])
            _dot(axes, place, figures, colors[method["group"]], panel.is_count)
    for (name, share), dashes in zip(panel.lines.items(), _DASHES, strict=False):
        axes.axvline(100 * share, color=ink.soft, linestyle=dashes, linewidth=1.2, label=name, zorder=1)
    if panel.is_count:
        axes.set_xscale("log")
        low = math.floor(math.log10(min(found)))
        axes.set_xlim(10.0**low, 10.0 ** max(low + 1, math.ceil(math.log10(max(found)))))


def _rows(data: dict[str, Any]) -> list[dict[str, Any] | str]:
    """Methods group by group, each group behind its heading (where there are several)."""
    groups = dict.fromkeys(method["group"] for method in data["methods"])
    rows: list[dict[str, Any] | str] = []
    for group in groups:
        rows += [data["groups"].get(group, group)] if len(groups) > 1 else []
        rows += [method for method in data["methods"] if method["group"] == group]
    return rows


def _dot(axes: Any, place: int, figures: dict[str, Any], color: str, is_count: bool) -> None:
    unit = 1 if is_count else 100
    if figures["low"] is not None and figures["high"] is not None:
        ends = [unit * figures["low"], unit * figures["high"]]
        axes.plot(ends, [place, place], color=color, linewidth=2, alpha=0.45)
    seeds = [unit * value for value in figures["by_seed"] if value is not None]
    if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), "|", color=color, markersize=9, markeredgewidth=1.4)
    axes.plot(unit * figures["value"], place, "o", color=color, markersize=6)
    if is_count:
        there = {"xytext": (7, 0), "textcoords": "offset points", "annotation_clip": False}
        digits, power = f"{figures['value']:.1e}".split("e")
        text = rf"${digits}\times10^{{{int(power)}}}$"
        axes.annotate(text, (figures["value"], place), color=color, va="center", fontsize=9, **there)


def _name_rows(axes: Any, rows: list[dict[str, Any] | str], names: list[str], ink: Ink) -> None:
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), names)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        heading = isinstance(row, str)
        label.set(color=ink.text if not heading else ink.soft, fontweight="bold" if heading else "normal", fontsize=9.5)


def _group_colors(data: dict[str, Any], ink: Ink) -> dict[str, str]:
    groups = list(dict.fromkeys(method["group"] for method in data["methods"]))
    return {group: ink.series[index % len(ink.series)] for index, group in enumerate(groups)}
