"""Does the lowest step reward fall on the step that is really wrong? Asked of arithmetic, where the truth is known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.metrics import first_error_hit
from prm_ray.core.steps import split_steps
from prm_ray.stages.candidates import Survey, read_texts
from prm_ray.stages.measure import share_interval
from prm_ray.tables import StageFolder


def knows_wrong_steps(config: RunConfig) -> bool:
    return config.problems.test == "arithmetic" and config.import_.source is None


def steps_of(row: dict[str, Any], rule: str) -> list[str] | None:
    """Texts of the steps that `step_rewards` belong to; None in the rare case that two steps shared a token."""
    steps = split_steps(row["text"], rule)
    return steps if len(steps) == len(row["step_rewards"]) else None


def first_wrong_step(steps: list[str], problem: str) -> int | None:
    """0-based; None = every step holds, the response is wrong for another reason (it stops early, gives no answer)."""
    from prm_ray import arithmetic

    return arithmetic.first_wrong_step(steps, problem)


def step_check(config: RunConfig, scores: StageFolder, found: Survey) -> dict[str, Any] | None:
    """Hit rate of the lowest step over wrong responses with a wrong step, against a random step of the same responses.

    None where the truth of a step is not known, or no wrong response has a wrong step.
    """
    if not knows_wrong_steps(config):
        return None
    hits, chances, counts, without = [], [], [], 0
    for part in found.parts:
        for rows in read_texts(scores, part).values():
            results = [_check(row, config.reference.step_rule) for row in rows if row["correct"] is False]
            checked = [result for result in results if result is not None]
            without += len(results) - len(checked)
            if checked:
                hits.append(sum(hit for hit, _ in checked))
                chances.append(sum(chance for _, chance in checked))
                counts.append(len(checked))
    if not counts:
        return None
    return {
        "hit_rate": asdict(share_interval(config, hits, counts)),
        "chance": asdict(share_interval(config, chances, counts)),
        "ratio": asdict(share_interval(config, hits, chances)),
        "num_responses": sum(counts),
        "num_problems": len(counts),
        "num_wrong_without_a_wrong_step": without,
    }


def _check(row: dict[str, Any], rule: str) -> tuple[float, float] | None:
    steps = steps_of(row, rule)
    first_wrong = None if steps is None else first_wrong_step(steps, row["problem"])
    return None if first_wrong is None else first_error_hit(row["step_rewards"], first_wrong)
