"""What a search in the gateway may ask for: checked before anything is sampled."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from prm_ray.scoring.asks import Refusal, RefusedError
from prm_ray.search.plan import Plan
from prm_ray.search.strategies import ADAPTIVE, KEEP_BEAMS, REJECTING, STRATEGIES
from prm_ray.serve.generator import ALL_EQUAL

WHOLE_RESPONSES = ("best_of_n", "adaptive")
"""Strategies that draw responses from the beginning to the end: any generator will do."""
TAKEN_BY: dict[str, tuple[str, ...]] = {
    "expand": (*KEEP_BEAMS, "mcts"),
    "lookahead": ("lookahead",),
    "resample_temperature": ("particles",),
    "exploration": ("mcts",),
    "settle_error": ADAPTIVE,
    "reject_below": REJECTING,
}
"""Option of a request -> the strategies that take it."""


def check_search(strategy: str, plan: Plan, temperature: Any, has_steps: bool, max_candidates: int) -> None:
    """Raises `RefusedError`."""
    if strategy not in STRATEGIES:
        _invalid(f"prm.strategy: {strategy!r} must be one of {', '.join(STRATEGIES)}")
    if strategy not in WHOLE_RESPONSES and not has_steps:
        _invalid(
            f"prm.strategy: {strategy} continues responses step by step, which a generator at a URL cannot; "
            f"start the server with serve.generator=vllm, or use {' or '.join(WHOLE_RESPONSES)}"
        )
    if strategy in KEEP_BEAMS and plan.size % plan.expand:
        _invalid(f"best_of: {plan.size} must be a multiple of prm.expand, {plan.expand}, for {strategy}")
    if strategy in REJECTING and plan.reject_below == -math.inf:
        _invalid(f"prm.reject_below: {strategy} needs a threshold; give one here, or the server search.reject_below")
    count = most_at_once(strategy, plan)
    if count > max_candidates:
        message = f"{strategy} with these widths may have {count} candidates, at most {max_candidates} are allowed"
        raise RefusedError(Refusal(413, "too_many_candidates", message))
    if temperature == 0 and count > 1:
        raise RefusedError(ALL_EQUAL)


def most_at_once(strategy: str, plan: Plan) -> int:
    """Candidates that a search may have side by side in the worst case.

    A tree keeps all that it ever expanded. The others drop some before each step; how many steps there are, a limit on
    the tokens of the whole search bounds.
    """
    return plan.size * plan.expand if strategy == "mcts" else plan.size


def _invalid(message: str) -> NoReturn:
    raise RefusedError(Refusal(422, "invalid_request", message))
