"""A few searched problems as trees for the report: which steps were proposed, what they were worth, which one won.

A problem is drawn by seed from each way a search can go, under the first configured strategy that searches by steps, at
its smallest size; whole responses of best-of-N are shown only where there is no such strategy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.config import RunConfig
from prm_ray.models import base_model, decode, load_tokenizer
from prm_ray.parquetfiles import read_parquet
from prm_ray.search.candidate import ROOT
from prm_ray.stages.report import reward_colours
from prm_ray.stages.searching.arms import Arm, Arms, Searched
from prm_ray.tables import StageFolder

Decode = Callable[[Sequence[int]], str]
_MOST_SHOWN = 4
"""Branches of a node; those that lead to the pick are always among them."""
_KINDS = {
    "found": "The pick is right; a single sample mostly is not",
    "right": "The pick is right",
    "passed_over": "The pick is wrong, although a right response competed",
    "never_there": "No right response ended",
}
_RANKS = ("picked", "on", "ended", "dropped", "failed")
"""What became of a candidate, the first of these that holds; `on` = it was continued."""


def search_examples(config: RunConfig, folder: StageFolder, arms: Arms) -> dict[str, Any] | None:
    """At most one problem of each kind; None if there is nothing to show."""
    arm = _example_arm(config, arms)
    if arm is None:
        return None
    chosen = _choose(config, arms.by_arm[arm], _one_sample(config, arms))
    tokenizer = load_tokenizer(
        base_model(config), config.prompt.chat_template, config.model.trust_remote_code, needs_chat=False
    )
    rows = _rows(folder, arm, [problem.prompt_id for _, problem in chosen])
    problems = [
        _example(config, kind, problem, rows[problem.prompt_id], lambda tokens: decode(tokenizer, tokens))
        for kind, problem in chosen
    ]
    by_steps = any(problem.has_steps for _, problem in chosen)
    return {"strategy": arm[0], "size": arm[1], "by_steps": by_steps, "problems": problems} if problems else None


def _example_arm(config: RunConfig, arms: Arms) -> Arm | None:
    ordered = [arm for arm in config.search.arms if arm in arms.by_arm]
    by_steps = [arm for arm in ordered if any(problem.has_steps for problem in arms.by_arm[arm])]
    return next(iter([*by_steps, *ordered]), None)


def _one_sample(config: RunConfig, arms: Arms) -> dict[str, float]:
    """Share of right ones among the single samples to each problem; empty without best-of-N."""
    whole = next((problems for (strategy, _), problems in arms.by_arm.items() if strategy == "best_of_n"), [])
    return {problem.prompt_id: problem.accuracy("oracle", 1, config.run.seed) for problem in whole}


def _choose(config: RunConfig, problems: list[Searched], one_sample: dict[str, float]) -> list[tuple[str, Searched]]:
    chosen: dict[str, Searched] = {}
    for problem in random.Random(config.run.seed).sample(problems, len(problems)):
        if config.search.pick not in problem.right:
            chosen.setdefault("passed_over" if problem.correct_N.any() else "never_there", problem)
        else:
            chosen.setdefault("found" if one_sample.get(problem.prompt_id, 1.0) < 0.5 else "right", problem)
    if "found" in chosen:
        chosen.pop("right", None)
    return [(kind, chosen[kind]) for kind in _KINDS if kind in chosen]


def _rows(folder: StageFolder, arm: Arm, prompt_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """All candidates to these problems, as they were proposed."""
    rows: dict[str, list[dict[str, Any]]] = {prompt_id: [] for prompt_id in prompt_ids}
    for index in folder.finished_parts():
        table = read_parquet(folder.part_path(index))
        is_arm = pc.and_(pc.equal(table["strategy"], arm[0]), pc.equal(table["size"], arm[1]))
        is_asked = pc.is_in(table["prompt_id"], value_set=pa.array(prompt_ids, pa.string()))
        for row in table.filter(pc.and_(is_arm, is_asked)).to_pylist():
            rows[row["prompt_id"]].append(row)
    return {prompt_id: sorted(each, key=lambda row: row["candidate"]) for prompt_id, each in rows.items()}


def _example(
    config: RunConfig, kind: str, problem: Searched, rows: list[dict[str, Any]], read: Decode
) -> dict[str, Any]:
    pick = next((row for row in rows if config.search.pick in (row["picked_by"] or ())), None)
    tree = grow_tree(rows, config.search.pick, read)
    return {
        "kind": _KINDS[kind],
        "problem": rows[0]["problem"],
        "gold_answer": rows[0]["gold_answer"],
        "answer": pick["answer"] if pick else None,
        "num_candidates": len(rows),
        "num_ended": problem.num_ended,
        "tokens": problem.tokens,
        "tree": tree,
        **reward_colours(_values(tree["children"])),
    }


def grow_tree(rows: list[dict[str, Any]], how: str, read: Decode) -> dict[str, Any]:
    """{children, hidden} below the empty response. Copies of a step become one node; of many only some are shown."""
    below: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        below.setdefault(row["parent"], []).append(row)

    def branches(parents: list[int], before: tuple[int, ...]) -> dict[str, Any]:
        copies: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for row in (row for parent in parents for row in below.get(parent, ())):
            copies.setdefault(tuple(row["tokens"] or ()), []).append(row)
        prefix = len(read(before)) if before else 0
        nodes = []
        for tokens, group in copies.items():
            node = _node(group, how, below) | {"text": read((*before, *tokens))[prefix:].strip()}
            nodes.append(node | branches([row["candidate"] for row in group], (*before, *tokens)))
        for node in nodes:
            node["leads"] = node["became"] == "picked" or any(child["leads"] for child in node["children"])
        return _shown(nodes)

    return branches([ROOT], ())


def _node(group: list[dict[str, Any]], how: str, below: dict[int, Any]) -> dict[str, Any]:
    fates = {row["candidate"]: _became(row, how, below) for row in group}
    row = min(group, key=lambda row: _RANKS.index(fates[row["candidate"]]))
    keys = ("value", "answer", "correct", "error")
    return {"became": fates[row["candidate"]], "copies": len(group)} | {key: row[key] for key in keys}


def _became(row: dict[str, Any], how: str, below: dict[int, Any]) -> str:
    if row["error"] is not None:
        return "failed"
    if how in (row["picked_by"] or ()):
        return "picked"
    if row["finish_reason"] is not None:
        return "ended"
    return "on" if row["candidate"] in below else "dropped"


def _shown(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What leads to the pick first, then by what became of them, then by value."""

    def order(node: dict[str, Any]) -> tuple[bool, int, float]:
        return not node["leads"], _RANKS.index(node["became"]), -(node["value"] if node["value"] is not None else -1e9)

    ranked = sorted(nodes, key=order)
    hidden = ranked[_MOST_SHOWN:]
    values = [node["value"] for node in hidden if node["value"] is not None]
    left_out = {"num": sum(node["copies"] for node in hidden), "low": min(values, default=None)}
    return {"children": ranked[:_MOST_SHOWN], "hidden": left_out | {"high": max(values, default=None)}}


def _values(nodes: list[dict[str, Any]]) -> list[float]:
    own = [node["value"] for node in nodes if node["value"] is not None]
    return own + [value for node in nodes for value in _values(node["children"])]
