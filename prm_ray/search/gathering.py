"""Holds jobs back until they are enough for one pass: workers that share cores with others do best with few large ones.

A pass over a few tokens costs hardly less than one over hundreds, and on shared cores others pay for it. Nothing is
held back for long where somebody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_TICK = 0.25
"""Seconds that a job waits for others in any case, and between two looks at whether somebody waits for it."""


class Gathering:
    """For one pool. Jobs go once they cost `enough` together, once they have waited `seconds`, or once `may_wait` says
    that the time has come: whatever it asks about has nothing else to do."""

    def __init__(self, enough: int, seconds: float, may_wait: Callable[[], bool]):
        self._enough, self._seconds, self._may_wait = enough, seconds, may_wait
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_ripe = False

    def holds_back(self, cost: int, release: Callable[[], None]) -> bool:
        """Whether the jobs that wait, which cost so much, should wait on; `release` is called once they should not."""
        if self._is_ripe:
            return False
        if cost >= self._enough:
            self.close()
            return False
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            self._timer = loop.call_later(_TICK, self._look, release)
        return True

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, release: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._may_wait() and loop.time() - self._since < self._seconds:
            self._timer = loop.call_later(_TICK, self._look, release)
            return
        self._timer, self._is_ripe = None, True
        release()
        self._is_ripe = False
