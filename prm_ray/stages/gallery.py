"""Worked examples for the report: a few problems drawn at random from each way a pick can go."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.selection import best_of_n, majority_vote
from prm_ray.stages.candidates import Candidates, Survey, read_texts
from prm_ray.stages.stepcheck import first_wrong_step, knows_wrong_steps, steps_of
from prm_ray.tables import StageFolder

NUM_EXAMPLES, NUM_SHOWN = 6, 4
KINDS = {
    "prm_only": "The PRM picks a right answer, the majority a wrong one",
    "majority_only": "The majority is right, the PRM's pick is not",
    "both_wrong": "A right candidate was there; the PRM and the majority both missed it",
    "both_right": "The PRM and the majority are both right, among wrong candidates",
    "one_sided": "All candidates right, or all wrong: nothing to choose",
}


def gallery(config: RunConfig, scores: StageFolder, found: Survey, problems: list[Candidates]) -> list[dict[str, Any]]:
    """Up to six problems with some of their candidates, steps and step rewards, as plain values for the page."""
    reward = f"prm_{config.aggregation}"
    chosen = dict(_choose(problems, reward, config.run.seed))
    examples = []
    by_id = {problem.prompt_id: problem for problem in problems}
    for part in found.parts:
        for prompt_id, rows in read_texts(scores, part, set(chosen)).items():
            problem = by_id[prompt_id]
            picks = {"PRM": best_of_n(problem.pick_by(reward)), "majority": majority_vote(problem.answers)}
            examples.append({"kind": KINDS[chosen[prompt_id]], "order": list(chosen).index(prompt_id)})
            examples[-1] |= _example(config, rows, picks)
    return sorted(examples, key=lambda example: example["order"])


def _choose(problems: list[Candidates], reward: str, seed: int) -> Iterator[tuple[str, str]]:
    """(prompt_id, kind), the kinds taking turns; problems of one kind are in seeded random order."""
    by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for problem in random.Random(seed).sample(problems, len(problems)):
        by_kind[_kind(problem, reward)].append(problem.prompt_id)
    one_sided = by_kind.pop("one_sided")
    turns = zip_longest(*([(key, kind) for key in keys] for kind, keys in by_kind.items()))
    order = [item for turn in turns for item in turn if item is not None]
    order += [(key, "one_sided") for key in one_sided]
    yield from order[:NUM_EXAMPLES]


def _kind(problem: Candidates, reward: str) -> str:
    if problem.correct_N.all() or not problem.correct_N.any():
        return "one_sided"
    prm_right = problem.correct_N[best_of_n(problem.pick_by(reward))]
    majority_right = problem.correct_N[majority_vote(problem.answers)]
    if prm_right:
        return "both_right" if majority_right else "prm_only"
    return "majority_only" if majority_right else "both_wrong"


def _example(config: RunConfig, rows: list[dict[str, Any]], picks: dict[str, int]) -> dict[str, Any]:
    reward = f"reward_{config.aggregation}"
    by_reward = sorted(range(len(rows)), key=lambda index: -rows[index][reward])
    right = [index for index in by_reward if rows[index]["correct"]]
    wrong = [index for index in by_reward if rows[index]["correct"] is False]
    wanted = [picks["PRM"], picks["majority"], *right[:1], *wrong[:1], by_reward[-1], *by_reward]
    shown = set(list(dict.fromkeys(wanted))[:NUM_SHOWN])
    return {
        "problem": rows[0]["problem"],
        "gold_answer": rows[0]["gold_answer"],
        "num_candidates": len(rows),
        "num_right": len(right),
        "candidates": [
            _candidate(config, rows[index], [name for name, pick in picks.items() if pick == index])
            for index in by_reward
            if index in shown
        ],
    }


def _candidate(config: RunConfig, row: dict[str, Any], picked_by: list[str]) -> dict[str, Any]:
    steps = steps_of(row["text"], config.reference.step_rule, len(row["step_rewards"]))
    wrong = first_wrong_step(steps, row["problem"]) if steps is not None and knows_wrong_steps(config) else None
    return {
        "reward": row[f"reward_{config.aggregation}"],
        "answer": row["answer"],
        "correct": row["correct"],
        "picked_by": picked_by,
        "text": row["text"],
        "steps": [
            {"text": text.strip(), "reward": reward, "is_first_wrong": index == wrong}
            for index, (text, reward) in enumerate(zip(steps or [], row["step_rewards"] if steps else [], strict=True))
        ],
    }
