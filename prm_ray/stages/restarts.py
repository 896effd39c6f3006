"""What a training says when its workers fail and start again."""

from __future__ import annotations

import logging
import sys
from typing import Any

from ray.train import UserCallback

_LONGEST = 400
_EXPECTED = "ray.train.v2._internal.callbacks.backend_setup"
"""Warns, with a traceback, that what workers had in common cannot be shut down in order once one is dead."""


class SaysRestarts(UserCallback):
    """One line a failure, printed by the process that steers the workers.

    Ray Train itself says it with a traceback, and only at a level at which it tells of every checkpoint too; its files
    have that. What fails for good comes out with all of it.
    """

    def __init__(self, name: str):
        self._name = name

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        logging.getLogger(_EXPECTED).setLevel(logging.ERROR)
        rank, error = min(worker_exceptions.items())
        reason = ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
        who = f"worker {rank}" if len(worker_exceptions) == 1 else f"{len(worker_exceptions)} workers"
        print(f"{self._name}: {who} failed: {reason[:_LONGEST]}", file=sys.stderr, flush=True)
