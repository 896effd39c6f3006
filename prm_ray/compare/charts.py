"""The pictures of a comparison. Each takes the figures of `figures.py` and gives a matplotlib figure; None where there
is nothing to draw. They are drawn twice, in the colours of a light and of a dark page.
"""

from __future__ import annotations

from collections.abc import Callable
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from prm_ray.compare.rows import Panel, draw_rows
from prm_ray.stages.ink import Ink, end_labels, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REFERENCE_LINES = {"majority": "majority vote", "ref_logprob_mean": "untrained reference", "pass@1": "one sample"}
_DASHES = {"majority": "--", "ref_logprob_mean": ":"}


def accuracy_chart(data: dict[str, Any], ink: Ink) -> Figure | None:
    """Best-of-N at the largest N, a row a method, with what needs no training as lines."""
    n = str(data["sizes"][-1])
    lines = {
        label: data["untrained"][way]["accuracy"][n]["value"]
        for way, label in _REFERENCE_LINES.items()
        if way in data["untrained"]
    }
    title = f"% of {data['num_problems']} problems answered right, best of {n} by the reward"
    return draw_rows(data, ink, title, [Panel("", lambda method: method["accuracy"][n], lines)])


def uses_chart(data: dict[str, Any], ink: Ink) -> Figure | None:
    """Gain of weighted votes, order within a problem, first wrong steps: a panel each."""
    panels = [
        Panel("points over a majority vote", lambda method: method["vote_gain"], {"no gain": 0.0}),
        Panel("% of right-wrong pairs in the right order", lambda method: method["auc_within"], {"coin toss": 0.5}),
    ]
    chances = [method["first_wrong_step"]["chance"] for method in data["methods"] if method["first_wrong_step"]]
    if chances:
        title = "% of wrong responses whose lowest step is the first wrong one"
        panels.append(Panel(title, lambda method: method["first_wrong_step"], {"random step": chances[0]}))
    return draw_rows(data, ink, "What else the rewards are good for: votes, order, wrong steps", panels)


def candidates_chart(data: dict[str, Any], ink: Ink) -> Figure | None:
    """Accuracy against N for the methods shown."""
    sizes = data["sizes"]
    if len(sizes) < 2:
        return None
    axes = new_axes(ink, 9.6, 4.8, f"% of {data['num_problems']} problems answered right, by number of candidates")
    labels: list[tuple[float, float, str, str]] = []
    shown = [method for method in data["methods"] if method["name"] in data["shown"]]
    for method, color in zip(shown, ink.series, strict=False):
        points = [method["accuracy"][str(n)] for n in sizes]
        _curve(axes, sizes, points, color, with_band=not labels)  # several bands would hide each other
        labels.append((sizes[-1], 100 * points[-1]["value"], method["label"], color))
    for way, dashes in _DASHES.items():
        if way in data["untrained"]:
            values = [100 * data["untrained"][way]["accuracy"][str(n)]["value"] for n in sizes]
            axes.plot(sizes, values, color=ink.soft, linestyle=dashes, linewidth=1.3)
            labels.append((sizes[-1], values[-1], data["untrained"][way]["label"], ink.soft))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_xlabel("N, candidates a problem")
    axes.set_ylabel("% of problems answered right")
    end_labels(axes, labels)
    return axes.figure


def cost_chart(data: dict[str, Any], ink: Ink) -> Figure | None:
    """Accuracy beside the operations it took, a row a method; those without a known cost are named below."""
    n = str(data["sizes"][-1])
    if all(cost_of(method) is None for method in data["methods"]):
        return None
    majority = {"majority vote": data["untrained"]["majority"]["accuracy"][n]["value"]}
    panels = [
        Panel(f"% right, best of {n}", lambda method: method["accuracy"][n], majority),
        Panel("operations: sampling and labelling training responses, training", cost_of, is_count=True),
    ]
    unknown = without_cost(data)
    note = f"no cost known: {', '.join(unknown)}" if unknown else ""
    return draw_rows(data, ink, "What each method reaches, and the floating-point operations to make it", panels, note)


def cost_of(method: dict[str, Any]) -> dict[str, Any] | None:
    """Operations to make it, the mean over the seeds whose runs tell; None = none does."""
    flops = [run["flops"]["total"] for run in method["runs"] if run["flops"]]
    return {"value": sum(flops) / len(flops), "low": None, "high": None, "by_seed": []} if flops else None


def without_cost(data: dict[str, Any]) -> list[str]:
    return [method["label"] for method in data["methods"] if cost_of(method) is None]


def scaling_chart(data: dict[str, Any], ink: Ink) -> Figure | None:
    """Accuracy against an amount of training data, a panel an amount."""
    n, curves = str(data["sizes"][-1]), data["scaling"]
    if not curves:
        return None
    methods = {method["name"]: method for method in data["methods"]}
    title = f"% of {data['num_problems']} problems answered right, best of {n}, by amount of training data"
    all_axes = new_axes(ink, 9.6, 4.0, title, columns=len(curves))
    for axes, curve, color in zip(all_axes, curves, ink.series, strict=False):
        amounts = [amount for amount, _ in curve["points"]]
        points = [methods[name]["accuracy"][n] for _, name in curve["points"]]
        _curve(axes, amounts, points, color)
        for amount, point in zip(amounts, points, strict=True):
            axes.plot([amount] * len(point["by_seed"]), [100 * each for each in point["by_seed"]], "_", color=color)
        axes.set_xscale("log", base=2)
        axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
        axes.minorticks_off()
        axes.set_xlabel(curve["axis"])
    all_axes[0].set_ylabel(f"% answered right, best of {n}")
    return all_axes[0].figure


def length_chart(data: dict[str, Any], ink: Ink) -> Figure | None:
    """Mean standardised reward against length for right and for wrong responses, a panel a method shown."""
    shown = [method for method in data["methods"] if method["name"] in data["shown"]]
    title = "Reward by length of the response, for right and for wrong responses"
    all_axes = new_axes(ink, 9.6, 3.7, title, columns=len(shown), sharex=True)
    for axes, method in zip(all_axes, shown, strict=True):
        for kind, color in (("right", ink.good), ("wrong", ink.bad)):
            bins = method["length"][kind]["bins"]
            axes.plot(
                [each["length"] for each in bins], [each["reward"] for each in bins], "-o", color=color, label=kind
            )
        axes.set_title("\n".join(wrap(method["label"], 88 // len(shown))), fontsize=9.5, color=ink.text)
        axes.set_xlabel("tokens of the response")
    all_axes[0].set_ylabel("mean reward (standardised)")
    all_axes[0].legend(frameon=False, labelcolor=ink.text)
    return all_axes[0].figure


def _curve(axes: Any, places: list[float], points: list[dict[str, Any]], color: str, with_band: bool = True) -> None:
    value, low, high = ([100 * point[key] for point in points] for key in ("value", "low", "high"))
    if with_band:
        axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
    axes.plot(places, value, "-o", color=color, markersize=4.5, linewidth=1.8)


CHARTS: dict[str, Callable[[dict[str, Any], Ink], Figure | None]] = {
    "accuracy": accuracy_chart,
    "candidates": candidates_chart,
    "uses": uses_chart,
    "cost": cost_chart,
    "scaling": scaling_chart,
    "length": length_chart,
}
"""Name of a picture, which is its file's too -> what draws it."""
