"""Colours and axes that all pictures share: of a search, of a comparison."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prm_ray.stages.plots import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Ink:
    """Colours for one kind of page."""

    page: str
    text: str
    soft: str
    line: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Ink(
    *("#ffffff", "#14181f", "#5b6472", "#e2e6ec", "#16945a", "#d6521c"),
    ("#2563eb", "#d97706", "#0d9488", "#c026d3", "#dc2626", "#4d7c0f", "#0e7490", "#7c3aed", "#92400e"),
)
DARK = Ink(
    *("#181e27", "#e7ebf1", "#9aa5b5", "#2b3442", "#34d38c", "#fb844a"),
    ("#6ea0ff", "#fbbf24", "#2dd4bf", "#e879f9", "#f87171", "#a3e635", "#38bdf8", "#a78bfa", "#d6a06c"),
)
_LABEL: dict[str, Any] = {"fontsize": 9.0, "va": "center", "annotation_clip": False}


def new_axes(
    ink: Ink, width: float, height: float, title: str, columns: int | None = None, sharex: bool = False
) -> Any:
    """Axes of a new figure of so many inches; a list of them that share their y axis if `columns` is given.

    The title says what the picture shows when it is seen alone.
    """
    figure = new_figure(ink, width, height, title)
    grid = figure.subplots(1, columns or 1, sharex=sharex, sharey=True, squeeze=False)[0]
    for axes in grid:
        style(axes, ink)
    return list(grid) if columns else grid[0]


def new_figure(ink: Ink, width: float, height: float, title: str) -> Figure:
    """A figure of so many inches without axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor=ink.page)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=11, color=ink.text)
    return figure


def style(axes: Any, ink: Ink) -> None:
    axes.set_facecolor(ink.page)
    axes.grid(color=ink.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink.line)
    axes.tick_params(which="both", colors=ink.soft, labelsize=9, length=0)
    axes.xaxis.label.set(color=ink.soft, fontsize=9.5)
    axes.yaxis.label.set(color=ink.soft, fontsize=9.5)


def end_labels(axes: Any, labels: list[tuple[float, float, str, str]]) -> None:
    """Names right of the axes, each led to from its (x, y, name, colour), moved apart so that none covers another."""
    low, high = axes.get_ylim()
    places = spread([(y - low) / (high - low) for _, y, _, _ in labels], _label_height(axes), 1.0)
    line = {"arrowstyle": "-", "alpha": 0.4, "shrinkA": 2, "shrinkB": 4, "relpos": (0, 0.5)}
    for (x, y, name, color), place in zip(labels, places, strict=True):
        there = {"xytext": (1.04, place), "textcoords": "axes fraction", "arrowprops": line | {"color": color}}
        axes.annotate(name, (x, y), color=color, **there, **_LABEL)


def _label_height(axes: Any) -> float:
    """Of a line of text, in heights of the axes, which take about 0.85 of their figure."""
    return 1.35 * _LABEL["fontsize"] / (72 * axes.figure.get_figheight() * 0.85)


def as_svg(figure: Figure) -> str:
    """The figure as an address that a page can hold in itself."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
