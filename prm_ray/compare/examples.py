"""A few problems with their candidates, and what each of some methods gives for every step, side by side."""

from __future__ import annotations

import random
import statistics
from typing import Any

import numpy as np

from prm_ray.compare.methods import Comparison, Method, same_candidates
from prm_ray.compare.runs import Candidates, FinishedRun, first_wrong_step, knows_wrong_steps, rows_of_test
from prm_ray.core.selection import answered_first, best_of_n
from prm_ray.core.steps import split_steps
from prm_ray.parquetfiles import read_parquet
from prm_ray.tables import StageFolder

NUM_EXAMPLES, NUM_CANDIDATES, NUM_METHODS = 3, 4, 4
_COLUMNS = ["prompt_id", "split", "sample_index", "problem", "gold_answer", "text", "answer", "correct", "error"]


def shown_methods(comparison: Comparison, names: list[str]) -> list[Method]:
    """The methods that examples and lines are of: those asked for, else the first of each group, and then others."""
    if names:
        return [method for name in names for method in comparison.methods if method.name == name]
    first_of_group = {method.group: method for method in reversed(comparison.methods)}.values()
    order = [method for method in comparison.methods if method in first_of_group]
    order += [method for method in comparison.methods if method not in order]
    chosen = order[:NUM_METHODS]
    return [method for method in comparison.methods if method in chosen]


def examples(comparison: Comparison, shown: list[Method]) -> list[dict[str, Any]]:
    """Problems with right and wrong candidates, those first of which some methods pick right and some wrong.

    Of each method the run of its first seed; methods whose candidates are others than the first's are left out.
    """
    runs = [method.runs[0] for method in shown if same_candidates(shown[0].runs[0], method.runs[0])]
    chosen = _choose(comparison, runs)
    rows = [_read(run, chosen) for run in runs]
    scales = [_scale(list(by_problem.values())) for by_problem in rows]
    return [_example(runs, [by_problem[key] for by_problem in rows], scales) for key in chosen]


def _choose(comparison: Comparison, runs: list[FinishedRun]) -> list[str]:
    keys = random.Random(comparison.seed).sample(comparison.prompt_ids, len(comparison.prompt_ids))
    mixed = [
        key for key in keys if 0 < runs[0].candidates[key].correct_N.sum() < len(runs[0].candidates[key].correct_N)
    ]
    return sorted(mixed, key=lambda key: len({_picks_right(run.candidates[key]) for run in runs}) == 1)[:NUM_EXAMPLES]


def _picks_right(candidates: Candidates) -> bool:
    return bool(candidates.correct_N[best_of_n(answered_first(candidates.rewards_N, candidates.answers))])


def _read(run: FinishedRun, prompt_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    scores, reward = StageFolder(run.folder, "score"), f"reward_{run.aggregation}"
    found: dict[str, list[dict[str, Any]]] = {}
    for part in scores.finished_parts():
        table = read_parquet(scores.part_path(part), [*_COLUMNS, "step_rewards", reward])
        found |= {key: rows for key, rows in rows_of_test(table, reward).items() if key in prompt_ids}
    return found


def _scale(problems: list[list[dict[str, Any]]]) -> tuple[float, float]:
    """The step reward of this method without a colour, and how far from it is the full colour."""
    rewards = [reward for rows in problems for row in rows for reward in row["step_rewards"]]
    center = statistics.median(rewards) if rewards else 0.0
    sizes = sorted(abs(reward - center) for reward in rewards)
    return center, (sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0) or 1.0


def _example(
    runs: list[FinishedRun], tables: list[list[dict[str, Any]]], scales: list[tuple[float, float]]
) -> dict[str, Any]:
    """`tables`: of each run the rows of this problem's candidates, in the same order."""
    rewards_MN = np.array(
        [[row[f"reward_{run.aggregation}"] for row in rows] for run, rows in zip(runs, tables, strict=True)]
    )
    answers = [row["answer"] for row in tables[0]]
    picks = [best_of_n(answered_first(rewards_N, answers)) for rewards_N in rewards_MN]
    by_first = np.argsort(-rewards_MN[0], kind="stable").tolist()
    right = [index for index in by_first if tables[0][index]["correct"]]
    shown = set(list(dict.fromkeys([*picks, *right[:1], by_first[-1], *by_first]))[:NUM_CANDIDATES])
    ranks_MN = (-rewards_MN).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable") + 1
    return {
        "problem": tables[0][0]["problem"],
        "gold_answer": tables[0][0]["gold_answer"],
        "num_candidates": len(by_first),
        "num_right": len(right),
        "methods": [run.label for run in runs],
        "candidates": [
            {
                "answer": tables[0][index]["answer"],
                "correct": tables[0][index]["correct"],
                "ranks": ranks_MN[:, index].tolist(),
                "steps": _steps(runs[0], [rows[index] for rows in tables], scales),
                "text": tables[0][index]["text"],
            }
            for index in by_first
            if index in shown
        ],
    }


def _steps(
    run: FinishedRun, rows: list[dict[str, Any]], scales: list[tuple[float, float]]
) -> list[dict[str, Any]] | None:
    """Each step with every method's reward and its strength, -1 .. 1; None if steps and rewards do not match."""
    rule = run.config["reference"]["step_rule"]
    texts = split_steps(rows[0]["text"], rule)
    if any(len(row["step_rewards"]) != len(texts) for row in rows):
        return None
    wrong = first_wrong_step(rows[0], rule) if knows_wrong_steps(run.config) and not rows[0]["correct"] else None
    return [
        {
            "text": text.strip(),
            "is_first_wrong": index == wrong,
            "rewards": [
                {"value": row["step_rewards"][index], "strength": _strength(row["step_rewards"][index], *scale)}
                for row, scale in zip(rows, scales, strict=True)
            ],
        }
        for index, text in enumerate(texts)
    ]


def _strength(reward: float, center: float, scale: float) -> float:
    return max(-1.0, min(1.0, (reward - center) / scale))
