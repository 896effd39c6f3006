"""How busy both pools of a search were over time: as geometry for the SVG in report.html, and as utilisation.png."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prm_ray.stages.ink import Ink, new_figure, style
from prm_ray.stages.plots import LEFT, WIDTH
from prm_ray.stages.searching.plots import scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RIGHT, _TOP, _HEIGHT, _GAP, _BOTTOM = 12, 30, 110, 56, 44
"""Margins around the panels, height of one and what lies between two, in SVG units."""
_BUSY, _QUEUED = "% of workers busy", "requests waiting for a worker"
_UNITS = ((3 * 3600, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))
"""From so many seconds on, seconds of a unit, its name."""
_CSS = ("s0", "s1", "s2")


@dataclass(frozen=True)
class Track:
    """One pool: bins of time, each with the level that held on average until it ended."""

    name: str
    edges: list[float]
    """Beginnings of the bins, and the end of the last."""
    busy: list[float]
    """Percent."""
    queued: list[float]


def tracks(report: dict[str, Any]) -> tuple[list[Track], str]:
    """A track a pool that has worked, and the unit of their times."""
    pools = {name: pool for name, pool in report["usage"].get("pools", {}).items() if pool["over_time"]}
    longest = max((pool["over_time"][-1][0] for pool in pools.values()), default=0.0)
    _, seconds, unit = next(each for each in _UNITS if longest >= each[0])
    return [_track(name, pool["over_time"], seconds) for name, pool in pools.items()], unit


def _track(name: str, over_time: list[list[float]], unit: float) -> Track:
    starts = [at / unit for at, _, _ in over_time]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    end = starts[-1] + min(gaps, default=1.0)  # bins are equally long, but those in which nobody worked are left out
    return Track(name, [*starts, end], [100 * busy for _, busy, _ in over_time], [queued for _, _, queued in over_time])


def utilisation_chart(report: dict[str, Any]) -> dict[str, Any] | None:
    """Two panels below each other, a step line a pool in each."""
    shown, unit = tracks(report)
    if not shown:
        return None
    end = max(track.edges[-1] for track in shown)
    x_ticks = [tick for tick in count_ticks(end, 8) if tick <= end]
    x = scale(0.0, end, LEFT, WIDTH - _RIGHT)
    panels = []
    for number, (title, levels, ticks) in enumerate(_panels(shown)):
        top = _TOP + number * (_HEIGHT + _GAP)
        y = scale(0.0, ticks[-1], top + _HEIGHT, top)
        lines = [
            {"css": css, "path": " ".join(f"{x(at)},{y(level)}" for at, level in _corners(track.edges, each))}
            for css, track, each in zip(_CSS, shown, levels, strict=False)
        ]
        panels.append({"title": title, "top": top, "lines": lines, "y_ticks": _labelled(ticks, y)})
    return {
        "width": WIDTH,
        "height": _TOP + 2 * _HEIGHT + _GAP + _BOTTOM,
        "left": LEFT,
        "right": WIDTH - _RIGHT,
        "bottom": _TOP + 2 * _HEIGHT + _GAP,
        "x_ticks": [{"x": x(tick), "label": f"{tick:g}"} for tick in x_ticks],
        "unit": unit,
        "panels": panels,
        "pools": [_summary(report, css, track) for css, track in zip(_CSS, shown, strict=False)],
    }


def _panels(shown: list[Track]) -> list[tuple[str, list[list[float]], list[float]]]:
    """Title, a list of levels a track, ticks of the y axis."""
    longest = max(max(track.queued) for track in shown)
    return [
        (_BUSY, [track.busy for track in shown], [0.0, 50.0, 100.0]),
        (_QUEUED, [track.queued for track in shown], count_ticks(longest, 4)),
    ]


def _labelled(ticks: list[float], y: Any) -> list[dict[str, Any]]:
    return [{"y": y(tick), "label": f"{tick:,g}"} for tick in ticks]


def _corners(edges: list[float], levels: list[float]) -> list[tuple[float, float]]:
    """Of a step line; equal levels in a row are one step."""
    corners: list[tuple[float, float]] = []
    for start, end, level in zip(edges, edges[1:], levels, strict=False):
        if len(corners) > 1 and corners[-1][1] == level:
            corners[-1] = (end, level)
        else:
            corners += [(start, level), (end, level)]
    return corners


def _summary(report: dict[str, Any], css: str, track: Track) -> dict[str, Any]:
    pool = report["usage"]["pools"][track.name]
    queued = {"mean_queued": sum(track.queued) / len(track.queued), "most_queued": max(track.queued)}
    return (
        {"name": track.name, "css": css, "busy": pool["busy"], "workers": pool["workers"]}
        | queued
        | {"deaths": pool["deaths"]}
    )


def count_ticks(highest: float, most: int) -> list[float]:
    """At most `most` round steps from 0 to `highest` or above it."""
    unit = 10.0 ** math.floor(math.log10(max(highest, 1e-9) / most))
    step = next(digit * unit for digit in (1, 2, 5, 10, 20) if highest / (digit * unit) <= most)
    return [round(number * step, 9) for number in range(max(1, math.ceil(highest / step)) + 1)]


def utilisation_figure(report: dict[str, Any], ink: Ink) -> Figure | None:
    shown, unit = tracks(report)
    if not shown:
        return None
    resumed = ", of the last start only" if report["usage"]["done_before"] else ""
    figure = new_figure(ink, 9.6, 4.6, f"How busy both pools of the search were{resumed}")
    both = figure.subplots(2, 1, sharex=True)
    for axes, (title, levels, ticks) in zip(both, _panels(shown), strict=True):
        style(axes, ink)
        for color, track, each in zip(ink.series, shown, levels, strict=False):
            name = f"{track.name}, mean {100 * report['usage']['pools'][track.name]['busy']:.0f} % busy"
            axes.stairs(each, track.edges, baseline=None, color=color, linewidth=1.6, label=name)
        axes.set_ylabel(title.replace(" waiting", "\nwaiting"))
        axes.set_ylim(0, 1.04 * (ticks[-1] or 1))
    both[0].legend(
        frameon=False, labelcolor=ink.text, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=9
    )
    both[1].set_xlabel(f"{unit} since the first worker was up")
    return figure
