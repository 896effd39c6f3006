"""The held-out problems of a run, for measurements beside the chain."""

from __future__ import annotations

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.problems import Problem
from prm_ray.tables import StageFolder


def held_out_problems(config: RunConfig, num_problems: int | None) -> list[Problem]:
    """The first so many test problems of reference/ (none = all), in their order.

    Raises `UserError` if there are none that can be judged.
    """
    source = StageFolder(config.run.dir, "reference")
    found: dict[str, Problem] = {}
    for row in source.rows(["split", "problem", "gold_answer"]):
        if row["split"] == "test" and row["problem"] is not None and row["problem"] not in found:
            found[row["problem"]] = Problem(row["problem"], row["gold_answer"], row=len(found))
    problems = list(found.values())[:num_problems]
    if not any(problem.answer is not None for problem in problems):
        raise UserError(
            f"{str(source.path)!r} has no held-out problem with a gold answer; there is nothing to judge by"
        )
    return problems
