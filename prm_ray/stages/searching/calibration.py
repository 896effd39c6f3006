"""The threshold of early rejection, found on the training problems that `train` held out.

Their responses have labels and were never trained on. They go through the search's own scorers, so the values are those
that the search will see; the last step of a prefix apart, a prefix is scored the same whatever comes behind it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.rewards import aggregate
from prm_ray.errors import UserError
from prm_ray.runlog import log
from prm_ray.search.candidate import Candidate, Reward
from prm_ray.search.driver import ScoreJob, Scorers, Unit
from prm_ray.search.plan import Plan
from prm_ray.search.rejection import calibrate, threshold_rank
from prm_ray.stages.trainingsets import held_out_responses
from prm_ray.tables import StageFolder

_FILE = "calibration.json"


async def reject_threshold(config: RunConfig, scorers: Scorers, folder: StageFolder, aggregation: str) -> float:
    """`search.reject_below`, or what an earlier start found, or what the held-out responses say.

    Raises `UserError` if there are too few right ones for `search.lost_right`.
    """
    section = config.search
    if section.reject_below is not None:
        return section.reject_below
    path = folder.path / _FILE
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["reject_below"]
    rows = held_out_responses(config)
    rewards = await asyncio.gather(*(_score(scorers, row, number) for number, row in enumerate(rows)))
    good = [(row, reward) for row, reward in zip(rows, rewards, strict=True) if reward.error is None]
    values = [prefix_values(reward, aggregation) for _, reward in good]
    threshold = calibrate(values, [bool(row["correct"]) for row, _ in good], section.lost_right)
    num_right = sum(bool(row["correct"]) for row, _ in good)
    log.info("search: beginnings below %.4g are dropped, by %d right held-out responses", threshold, num_right)
    figures = {"reject_below": threshold, "lost_right": section.lost_right, "num_right": num_right}
    folder.write_json(_FILE, figures | {"num_responses": len(good)})
    return threshold


def check_calibration(config: RunConfig) -> None:
    """Raises `UserError` if a threshold is needed and there is nothing, or too little, to find it on."""
    section = config.search
    rejecting = [name for name in section.strategies if name.endswith("rejection")]
    if not rejecting or section.reject_below is not None:
        return
    rows = [] if config.score.model is not None else held_out_responses(config)
    if not rows:
        raise UserError(
            f"search.strategies has {rejecting[0]!r}, whose threshold is found on training problems that train held "
            "out, and there are none: set search.reject_below"
        )
    threshold_rank(sum(bool(row["correct"]) for row in rows), section.lost_right)


def prefix_values(reward: Reward, aggregation: str) -> list[float]:
    """[S] the value of each prefix of a response, as a search would have seen it."""
    return [
        aggregate(reward.step_rewards[: number + 1], aggregation, end) for number, end in enumerate(reward.step_ends)
    ]


async def _score(scorers: Scorers, row: dict[str, Any], number: int) -> Reward:
    unit = Unit(row["prompt_id"], tuple(row["prompt_tokens"]), "", "calibration", Plan(1), 0)
    tokens = tuple(row["response_tokens"])
    job = ScoreJob(unit, Candidate(0, None, tokens, finish_reason="stop"))
    return await scorers.submit(job, cost=len(tokens), priority=number, key=unit.key)
