"""Does the lowest step reward fall on the step that is really wrong? Asked of arithmetic, where the truth is known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.metrics import first_error_hit
from prm_ray.core.rewards import step_rewards
from prm_ray.core.steps import split_steps
from prm_ray.stages.candidates import Survey, read_texts
from prm_ray.stages.measure import share_interval
from prm_ray.tables import StageFolder


def knows_wrong_steps(config: RunConfig) -> bool:
    return config.problems.test == "arithmetic" and config.import_.source is None


def steps_of(text: str, rule: str, num_steps: int) -> list[str] | None:
    """Texts of the steps that a row's `num_steps` step ends or rewards belong to; None in the rare case that two steps
    shared a token."""
    steps = split_steps(text, rule)
    return steps if len(steps) == num_steps else None


def first_wrong_step(steps: list[str], problem: str) -> int | None:
    """0-based; None = every step holds, the response is wrong for another reason (it stops early, gives no answer)."""
    from prm_ray import arithmetic

    return arithmetic.first_wrong_step(steps, problem)


def step_check(config: RunConfig, scores: StageFolder, found: Survey) -> dict[str, Any] | None:
    """Hit rate of the lowest step over wrong responses with a wrong step, against a random step of the same responses
    and against the step that the untrained reference finds least likely.

    A head's logit is about the whole prefix, as a prefix value is: asked of it is the step at which it falls most.

    None where the truth of a step is not known, or no wrong response has a wrong step.
    """
    if not knows_wrong_steps(config):
        return None
    totals, without, is_head = [], 0, config.reward != "log_ratio"
    for part in found.parts:
        for rows in read_texts(scores, part).values():
            if is_head:
                take_differences(rows)
            results = [_check(row, config.reference.step_rule) for row in rows if row["correct"] is False]
            checked = [result for result in results if result is not None]
            without += len(results) - len(checked)
            if checked:
                totals.append([sum(column) for column in zip(*checked, strict=True)])
    if not totals:
        return None
    hits, reference_hits, chances, counts = (list(column) for column in zip(*totals, strict=True))
    return {
        "hit_rate": asdict(share_interval(config, hits, counts)),
        "reference_hit_rate": asdict(share_interval(config, reference_hits, counts)),
        "chance": asdict(share_interval(config, chances, counts)),
        "ratio": asdict(share_interval(config, hits, chances)),
        "of_drops": is_head,
        "num_responses": sum(counts),
        "num_problems": len(counts),
        "num_wrong_without_a_wrong_step": without,
    }


def take_differences(rows: list[dict[str, Any]]) -> None:
    """Turn the logits of one problem's responses into changes from step to step, the first from the mean of the firsts:
    of a sound chance, the mean over what may come next is the chance before it."""
    before = sum(row["step_rewards"][0] for row in rows) / len(rows)
    for row in rows:
        logits = row["step_rewards"]
        row["step_rewards"] = [now - earlier for earlier, now in zip([before, *logits[:-1]], logits, strict=True)]


def _check(row: dict[str, Any], rule: str) -> tuple[float, float, float, int] | None:
    """Hit of the rewards, hit of the reference's own log-probs, chance, 1; None if no step is wrong."""
    steps = steps_of(row["text"], rule, len(row["step_rewards"]))
    first_wrong = None if steps is None else first_wrong_step(steps, row["problem"])
    if first_wrong is None:
        return None
    hit, chance = first_error_hit(row["step_rewards"], first_wrong)
    reference_hit, _ = first_error_hit(step_rewards(row["ref_logprobs"], row["step_ends"]), first_wrong)
    return hit, reference_hit, chance, 1
