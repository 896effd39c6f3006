"""Words of a comparison, its page, and its table in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prm_ray.compare.charts import CHARTS, without_cost
from prm_ray.stages.ink import DARK, LIGHT, as_svg
from prm_ray.stages.report import bracket, page_template, percent, signed

TEMPLATE = Path(__file__).parent / "comparison.html.jinja"


def headline(data: dict[str, Any]) -> str:
    """From where to where the methods reach, and how many can be told from the first one."""
    n, methods = str(data["sizes"][-1]), data["methods"]
    by_accuracy = sorted(methods, key=lambda method: method["accuracy"][n]["value"])
    low, high = by_accuracy[0], by_accuracy[-1]
    majority = percent(data["untrained"]["majority"]["accuracy"][n]["value"])
    reach = f"{percent(high['accuracy'][n]['value'])} ({high['label']})"
    if len(methods) > 1:
        reach = f"between {percent(low['accuracy'][n]['value'])} ({low['label']}) and {reach}"
    return (
        f"Picking the best of {n} candidates answers {reach} of {data['num_problems']} held-out problems right; "
        f"a majority vote answers {majority}.{_told_apart(methods)}"
    )


def _told_apart(methods: list[dict[str, Any]]) -> str:
    first, others = methods[0]["label"], methods[1:]
    if not others:
        return ""
    better = sum(method["against_first"]["low"] > 0 for method in others)
    worse = sum(method["against_first"]["high"] < 0 for method in others)
    same = len(others) - better - worse
    return f" Against {first}, {better} can be told to be better, {worse} worse, {same} cannot be told apart."


def spread_of_seeds(figures: dict[str, Any]) -> str:
    """`seeds 31.2 to 33.0`: lowest and highest of the training seeds; nothing for one seed."""
    values = [100 * value for value in figures["by_seed"] if value is not None]
    return f"seeds {min(values):.1f} to {max(values):.1f}" if len(values) > 1 else ""


def write_pictures(data: dict[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Write a PNG a picture; return name -> the picture for a light and for a dark page."""
    pictures = {}
    for name, draw in CHARTS.items():
        light, dark = draw(data, LIGHT), draw(data, DARK)
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier comparison, which may have had more to draw
        if light is not None and dark is not None:
            light.savefig(path)
            pictures[name] = {"light": as_svg(light), "dark": as_svg(dark)}
    return pictures


def write_comparison_page(
    data: dict[str, Any], pictures: dict[str, dict[str, str]], examples: list[dict[str, Any]], path: Path
) -> None:
    """comparison.html: one file, nothing loaded from elsewhere, everything escaped."""
    template = page_template(TEMPLATE)
    template.environment.filters |= {"seeds": spread_of_seeds}
    shown = {"data": data, "pictures": pictures, "examples": examples}
    page = template.render(**shown, groups=list(grouped(data)), without_cost=without_cost(data))
    path.write_text(page, encoding="utf-8")


def grouped(data: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(heading, methods) of each group; no heading where there is only one."""
    groups = dict.fromkeys(method["group"] for method in data["methods"])
    for group in groups:
        heading = data["groups"].get(group, group) if len(groups) > 1 else ""
        yield heading, [method for method in data["methods"] if method["group"] == group]


def markdown_table(data: dict[str, Any]) -> str:
    """The table to paste into a text: methods by group, then what needs no training."""
    sizes = [str(n) for n in data["sizes"]]
    largest, first = sizes[-1], data["methods"][0]["label"]
    head = ["% right [95 %]", *(f"N = {n}" for n in sizes), f"minus {first}", "minus majority", "weighted vote"]
    head += ["AUC within a problem", "first wrong step found"]
    lines = [_line(head), _line(["---"] * len(head))]
    for heading, methods in grouped(data):
        lines += [_line([f"**{heading}**", *[""] * (len(head) - 1)])] if heading else []
        for method in methods:
            cells = [_cell(method["accuracy"][n]) for n in sizes]
            cells += [
                _points(method["against_first"]) if method["name"] != data["methods"][0]["name"] else "\N{EN DASH}"
            ]
            cells += [_points(method["against_majority"])]
            cells += [_cell(method["vote"][largest]), _cell(method["auc_within"]), _cell(method["first_wrong_step"])]
            lines.append(_line([method["label"], *cells]))
    for row in data["untrained"].values():
        cells = [_cell(row["accuracy"][n]) for n in sizes]
        lines.append(_line([row["label"], *cells, *[""] * (len(head) - len(sizes) - 1)]))
    about = f"{data['num_problems']} held-out problems, training seeds {', '.join(map(str, data['seeds']))}."
    return "\n".join([*lines, "", about, *data["notes"]]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(figures: dict[str, Any] | None) -> str:
    if figures is None or figures["value"] is None:
        return ""
    return f"{100 * figures['value']:.1f} {bracket(figures)}".strip()


def _points(figures: dict[str, Any]) -> str:
    return f"{signed(100 * figures['value'])} {bracket(figures, '+')}"
