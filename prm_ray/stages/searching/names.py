"""What strategies and ways of picking are called in reports."""

from __future__ import annotations

from typing import Any

_STRATEGIES = {
    "best_of_n": "Best-of-N",
    "beam": "Beam search",
    "dvts": "DVTS",
    "lookahead": "Lookahead search",
    "particles": "Particle filter",
    "mcts": "Tree search",
    "adaptive": "Adaptive N",
    "rejection": "Early rejection",
    "adaptive_rejection": "Adaptive N, rejecting",
}
PICK_NAMES = {"best": "the highest reward", "weighted_vote": "by weighted vote", "majority": "by majority vote"}
"""Behind the word `picking`."""


def name_of(strategy: str) -> str:
    return _STRATEGIES.get(strategy, strategy.replace("_", " "))


def arm_name(arm: dict[str, Any]) -> str:
    """`Best of 16`, `Beam search (16)`: the number is `search.sizes`."""
    if arm["strategy"] == "best_of_n":
        return f"Best of {arm['size']}"
    return f"{name_of(arm['strategy'])} ({arm['size']})"
