"""An event loop whose clock jumps: hours of sleeping workers are simulated in a second, always in the same order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: whatever time there is to pass has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody: a deadlock"
        self.now += max(timeout, 0.0)
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` on that clock. Raises `AssertionError` where nothing would ever happen again."""
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(work)
