"""How busy a pool was over time: means over bins that grow with the run, so that a long one costs no more memory."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_BINS = 512
_FIRST_WIDTH = 0.25
"""Seconds of a bin at first; twice as many each time there would be too many bins."""


@dataclass
class _Bin:
    full: float = 0.0
    workers: float = 0.0
    queued: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class UsageAt:
    """Means over a stretch of time that begins `seconds` after the first note."""

    seconds: float
    busy: float
    """Share of the workers, 0 to 1; one that has less to do than it could counts in part."""
    queued: float
    """Jobs that waited for room."""


class Usage:
    """Levels that hold until the next note."""

    def __init__(self) -> None:
        self._bins: list[_Bin] = []
        self._width = _FIRST_WIDTH
        self.start = self._since = 0.0
        """When the first note was; on the clock of whoever makes the notes."""
        self._level: tuple[float, int, int] | None = None

    def note(self, now: float, full: float, num_workers: int, num_queued: int) -> None:
        """From `now` (seconds) on so many workers are fully busy, of so many, and so many jobs wait."""
        if self._level is None:
            self.start = now
        else:
            self._spread(now)
        self._level, self._since = (full, num_workers, num_queued), now

    @property
    def busy(self) -> float:
        """Share of the workers' time, from the first note to the last."""
        workers = sum(each.workers for each in self._bins)
        return sum(each.full for each in self._bins) / workers if workers else 0.0

    @property
    def full_seconds(self) -> float:
        """Seconds of one worker at full speed that the work so far took."""
        return sum(each.full for each in self._bins)

    def over_time(self) -> list[UsageAt]:
        return [
            UsageAt(number * self._width, each.full / each.workers, each.queued / each.seconds)
            for number, each in enumerate(self._bins)
            if each.workers
        ]

    def _spread(self, now: float) -> None:
        """Share the level since the last note out over the bins."""
        assert self._level is not None
        full, workers, queued = self._level
        at = self._since - self.start
        while (left := now - self.start - at) > 1e-9:
            number = int(at / self._width + 1e-9)
            if number >= _MAX_BINS:
                self._double()
                continue
            seconds = min(left, (number + 1) * self._width - at)
            self._bins += [_Bin() for _ in range(number + 1 - len(self._bins))]
            into = self._bins[number]
            into.full += full * seconds
            into.workers += workers * seconds
            into.queued += queued * seconds
            into.seconds += seconds
            at += seconds

    def _double(self) -> None:
        pairs = [self._bins[start : start + 2] for start in range(0, len(self._bins), 2)]
        self._bins = [_sum(pair) for pair in pairs]
        self._width *= 2


def _sum(bins: list[_Bin]) -> _Bin:
    return _Bin(
        sum(each.full for each in bins),
        sum(each.workers for each in bins),
        sum(each.queued for each in bins),
        sum(each.seconds for each in bins),
    )
