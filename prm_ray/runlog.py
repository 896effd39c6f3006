"""What a run tells people while it works: log lines on stderr, and progress bars."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from tqdm import tqdm

log = logging.getLogger("prm_ray")
_NEVER_SHOWN = (
    "There are infinite retries remaining",  # behind a worker that died, which another line says
    "has constructor arguments in the object store",  # of Ray's own actor pools
)
_RAYS_LINES = {"RAY_DEDUP_LOGS_SKIP_REGEX": "|".join(_NEVER_SHOWN), "RAY_DEDUP_LOGS_AGG_WINDOW_S": "60"}
"""Of what Ray prints into a job's log: nothing of the above, and once a minute what comes again, with other numbers in
it, from several workers or from Ray itself."""


def set_up_logging() -> None:
    """One handler on stderr, a short time stamp; called by entry points only, before Ray is imported."""
    for name, value in _RAYS_LINES.items():
        os.environ.setdefault(name, value)
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(os.environ.get("PRM_RAY_LOG", "INFO"))
    log.propagate = False


class Progress:
    """A progress bar that is also readable in a log file: there it prints a line every ten seconds."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0):
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"{name:<9}",
            unit=unit,
            mininterval=0.5 if interactive else 10,
            dynamic_ncols=interactive,
            ascii=not interactive,
            file=sys.stderr,
        )

    def advance(self, amount: int = 1, **figures: Any) -> None:
        """Move on; `figures` are shown behind the bar (loss, tokens a second ...)."""
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update(amount)

    def move_to(self, position: int, **figures: Any) -> None:
        """The same, to a position; back to one where work went on from an earlier point."""
        self.advance(position - self._bar.n, **figures)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """`1 h 12 min`, `3 min`, `40 s`."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
