"""Words and the page of a search. Figures come from `figures`, the page's frame is `page.html.jinja`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.stages.ink import DARK, LIGHT
from prm_ray.stages.report import bracket, page_template, percent, points_with_interval, verdict
from prm_ray.stages.searching.arms import read_arms
from prm_ray.stages.searching.examples import search_examples
from prm_ray.stages.searching.figures import make_report
from prm_ray.stages.searching.names import PICK_NAMES, arm_name, name_of
from prm_ray.stages.searching.plots import accuracy_chart, accuracy_figure
from prm_ray.stages.searching.table import read_usage
from prm_ray.stages.searching.utilisation import utilisation_chart, utilisation_figure
from prm_ray.tables import StageFolder, write_json

TEMPLATE = Path(__file__).parent / "page.html.jinja"
_FEW = 30
"""Fewer problems than this do not give resampling enough to draw from."""


def write_report(config: RunConfig, folder: StageFolder) -> dict[str, Any]:
    """report.json, report.html, accuracy.png and utilisation.png of what the table holds; returns the figures."""
    arms = read_arms(folder)
    report = make_report(config, arms, read_usage(folder))
    report["headline"] = headline(report)
    write_json(folder.workspace / "report.json", report)
    write_page(report, search_examples(config, folder, arms), folder.workspace / "report.html")
    for name, draw in (("accuracy", accuracy_figure), ("utilisation", utilisation_figure)):
        (folder.path / f"{name}.png").unlink(missing_ok=True)  # of an earlier report, which may have had more to draw
        if (figure := draw(report, LIGHT)) is not None:
            figure.savefig(folder.workspace / f"{name}.png")
    return report


def write_page(report: dict[str, Any], examples: dict[str, Any] | None, path: Path) -> None:
    """report.html: one file, nothing loaded from elsewhere, everything escaped."""
    page = page_template(TEMPLATE).render(
        report=report,
        name_of=name_of,
        arm_name=arm_name,
        chart=accuracy_chart(report),
        utilisation=utilisation_chart(report),
        examples=examples,
        tiles=_tiles(report),
        notes=_notes(report),
        inks=(LIGHT.series, DARK.series),
        picks=PICK_NAMES,
        config_text=json.dumps(report["config"], indent=2),
    )
    path.write_text(page, encoding="utf-8")


def headline(report: dict[str, Any]) -> str:
    """One honest sentence about the arm that reaches most: at which tokens, and whether that differs from one sample
    and from best-of-N with the same tokens."""
    arms, how = report["arms"], report["pick"]
    if not arms:
        return f"Nothing was searched: none of {report['num_problems_not_asked']} problems could be asked."
    top = best_arm(report)
    among = f", the highest of {len(arms)} searches," if len(arms) > 1 else ""
    figures = top["accuracy"][how]
    said = (
        f"{arm_name(top)}{among} answers {percent(figures['value'])} of {top['num_problems']} held-out problems right "
        f"{bracket(figures)} with {top['tokens_per_problem']:,.0f} tokens a problem, picking {PICK_NAMES[how]}"
    )
    if "against_one_sample" not in top:
        return f"{said}. Best-of-N was not searched, so there is nothing to compare it with."
    one = report["best_of_n"][0]
    sample = verdict(
        top["against_one_sample"][how], f"one sample of {one['tokens_per_problem']:,.0f} tokens", one["accuracy"][how]
    )
    against = top.get("against_best_of_n")
    if against is None:
        return f"{said}: {sample}."
    other = f"best of {against['n']:.3g} " + ("of fewer tokens" if against["is_beyond"] else "of the same tokens")
    return f"{said}: {sample}, and {verdict(against['difference'][how], other, {'value': against['accuracy'][how]})}."


def best_arm(report: dict[str, Any]) -> dict[str, Any]:
    """The arm of the highest accuracy; of equals the one that took fewer tokens."""
    how = report["pick"]
    return max(report["arms"], key=lambda arm: (arm["accuracy"][how]["value"], -arm["tokens_per_problem"]))


def _notes(report: dict[str, Any]) -> list[str]:
    """What has to be known to read the headline."""
    differences = [arm["against_best_of_n"]["difference"][report["pick"]] for arm in _compared(report)]
    better, worse = sum(each["low"] > 0 for each in differences), sum(each["high"] < 0 for each in differences)
    notes = []
    if len(differences) == 1:
        verdict = "better than" if better else "worse than" if worse else "not to be told apart from"
        notes.append(f"With the same tokens the search is {verdict} best-of-N.")
    elif differences:
        notes.append(
            f"Of {len(differences)} searches other than best-of-N, {better} can be told to be better than it with the "
            f"same tokens, {worse} worse, {len(differences) - better - worse} cannot be told apart."
        )
    if len(report["arms"]) > 1:
        notes.append("The highest was found by looking at these very problems: on others expect somewhat less of it.")
    if report["arms"] and report["num_problems"] < _FEW:
        notes.append(f"{report['num_problems']} problems are few: the intervals are narrower than they should be.")
    return notes


def _compared(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [arm for arm in report["arms"] if "against_best_of_n" in arm]


def _tiles(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures to remember, each with its tokens."""
    how, tiles = report["pick"], []

    def add(label: str, css: str, figures: dict[str, Any], way: str) -> None:
        tokens = figures["tokens_per_problem"]
        tiles.append({"label": label, "css": css, "figures": figures["accuracy"][way], "tokens": tokens})

    if report["best_of_n"]:
        one, most = report["best_of_n"][0], report["best_of_n"][-1]
        add("One sample", "c-base", one, how)
        if how != "majority":
            add(f"Majority of {most['n']}", "c-majority", most, "majority")
        add(f"Best of {most['n']}", "c-prm", most, how)
    others = [arm for arm in report["arms"] if arm["strategy"] != "best_of_n"]
    if others:
        top = best_arm(report | {"arms": others})
        add(arm_name(top), "c-vote", top, how)
    if report["best_of_n"]:
        add(f"Oracle of {report['best_of_n'][-1]['n']}", "c-oracle", report["best_of_n"][-1], "oracle")
    return tiles


def text(report: dict[str, Any]) -> str:
    """A line an arm, and the headline."""
    how = report["pick"]
    lines = [f"right of {report['num_problems']} held-out problems, picking {PICK_NAMES[how]}:"]
    if report["best_of_n"]:
        lines.append(_line("One sample", report["best_of_n"][0], how))
    for arm in report["arms"]:
        line = _line(arm_name(arm), arm, how)
        if against := arm.get("against_best_of_n"):
            line += f", {points_with_interval(against['difference'][how])} against best of {against['n']:.3g}"
            line += " of fewer tokens" if against["is_beyond"] else ""
        lines.append(line)
    return "\n".join([*lines, report["headline"], *_notes(report)])


def _line(name: str, figures: dict[str, Any], how: str) -> str:
    accuracy = figures["accuracy"][how]
    shown = f"{percent(accuracy['value'])} {bracket(accuracy)}"
    return f"  {name:<24} {shown:<24} {figures['tokens_per_problem']:>8,.0f} tokens a problem"
