"""Words, tables and the page of a report. Figures come from `measure`, the page's frame is `report.html.jinja`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.errors import UserError
from prm_ray.stages.measure import PASS_AT_1
from prm_ray.stages.plots import chart, label_of

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "report.html.jinja"
_NONE = "n/a"


def headline(report: dict[str, Any]) -> str:
    """One honest sentence: what picking by the PRM reaches, and whether that differs from a sample and a vote."""
    n, method = str(report["sizes"][-1]), f"prm_{report['aggregation']}"
    figures = report["accuracy"][method][n]
    against_sample = verdict(report["against_pass@1"][method][n]["difference"], "one sample", report[PASS_AT_1])
    majority = report["accuracy"]["majority"][n]
    against_vote = verdict(report["against_majority"][method][n]["difference"], f"a majority vote of {n}", majority)
    return (
        f"Picking the best of {n} candidates by the PRM answers {percent(figures['value'])} of "
        f"{report['num_problems']} test problems right {bracket(figures)}: {against_sample}, and {against_vote}."
    )


def verdict(difference: dict[str, float], other: str, figures: dict[str, float]) -> str:
    points = points_with_interval(difference)
    against = f"{other} ({percent(figures['value'])})"
    if difference["low"] > 0:
        return f"better than {against} by {points}"
    if difference["high"] < 0:
        return f"worse than {against} by {points}"
    return f"not distinguishable from {against}, {points}"


def text_table(report: dict[str, Any]) -> str:
    """The table of methods and N for a terminal."""
    sizes = [str(n) for n in report["sizes"]]
    width = max(len(label_of(method)) for method in report["accuracy"]) + 2
    head = f"{'% right [95 % interval]':<{width}}" + "".join(f"{'N = ' + n:>20}" for n in sizes)
    lines = [head, "-" * len(head), f"{label_of(PASS_AT_1):<{width}}{_cell(report[PASS_AT_1]):>20}"]
    for method, figures in report["accuracy"].items():
        lines.append(f"{label_of(method):<{width}}" + "".join(f"{_cell(figures[n]):>20}" for n in sizes))
    return "\n".join(lines)


def write_page(report: dict[str, Any], examples: list[dict[str, Any]], path: Path) -> None:
    """report.html: one file, nothing loaded from elsewhere, everything escaped."""
    page = page_template(Path(__file__).parent / TEMPLATE).render(
        report=report,
        chart=chart(report),
        tiles=_tiles(report),
        best=_best(report),
        examples=examples,
        **_colours(report, examples),
        config_text=json.dumps(report["config"], indent=2),
    )
    path.write_text(page, encoding="utf-8")


def page_template(path: Path) -> Template:
    """A template that escapes everything and has the style and the filters of all our pages."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError:
        raise UserError("the report needs jinja2, which is not installed: pip install jinja2") from None
    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "bracket": bracket, "signed": signed, "label_of": label_of}
    environment.filters |= {"count": _count, "tenth": _tenth, "flops": _flops}
    return environment.get_template(path.name)


def percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def bracket(figures: Mapping[str, float | None], sign: str = "-") -> str:
    """The interval in percent, or with a `sign` of "+" that of a difference in points; nothing where it has none."""
    low, high = figures["low"], figures["high"]
    return "" if low is None or high is None else f"[{100 * low:{sign}z.1f}, {100 * high:{sign}z.1f}]"


def signed(number: float, digits: int = 1) -> str:
    """`+0.0` for what rounds to 0, from whichever side."""
    return f"{number:+z.{digits}f}"


def points_with_interval(difference: Mapping[str, float]) -> str:
    """`+1.2 points [-0.3, +2.5]`, of shares."""
    return f"{signed(100 * difference['value'])} points {bracket(difference, '+')}"


def _cell(figures: dict[str, float]) -> str:
    return f"{100 * figures['value']:.1f} {bracket(figures)}"


def _count(number: float | None) -> str:
    return _NONE if number is None else f"{number:,.0f}"


def _tenth(number: float | None) -> str:
    return _NONE if number is None else f"{number:,.1f}"


def _flops(number: float | None) -> str:
    """0 is nothing computed, which is not the same as not known."""
    return _NONE if number is None else f"{number:.1e}" if number else "0"


def _tiles(report: dict[str, Any]) -> list[dict[str, Any]]:
    n, how = str(report["sizes"][-1]), report["aggregation"]
    tiles = [{"label": label_of(PASS_AT_1), "css": "c-base", "figures": report[PASS_AT_1]}]
    shown = {f"prm_{how}": "c-prm", f"weighted_{how}": "c-vote", "majority": "c-majority", "oracle": "c-oracle"}
    for method, css in shown.items():
        label = f"{label_of(method)}, N\u00a0=\u00a0{n}"
        tiles.append({"label": label, "css": css, "figures": report["accuracy"][method][n]})
    return tiles


def _best(report: dict[str, Any]) -> dict[str, float]:
    """Highest accuracy at each N, the oracle left out; rounded as it is shown."""
    methods = [figures for method, figures in report["accuracy"].items() if method != "oracle"]
    return {str(n): max(round(figures[str(n)]["value"], 3) for figures in methods) for n in report["sizes"]}


def _colours(report: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, float]:
    """0 has no colour if rewards are log-ratios; log-probs are never above 0, so there it is the median."""
    candidates = [candidate for example in examples for candidate in example["candidates"]]
    rewards = [step["reward"] for candidate in candidates for step in candidate["steps"]]
    return reward_colours(rewards, 0.0 if report["with_reference"] else None)


def reward_colours(rewards: list[float], center: float | None = None) -> dict[str, float]:
    """The reward without a colour (none given: the median of them), and how far from it is the full colour: the 90th
    percentile."""
    if center is None:
        center = statistics.median(rewards) if rewards else 0.0
    sizes = sorted(abs(reward - center) for reward in rewards)
    return {"reward_center": center, "reward_scale": (sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0) or 1.0}
