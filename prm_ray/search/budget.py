"""One token budget for all problems of a search: who may sample further, and when.

Problems ask for *rounds* of responses. The first round of a problem is granted at once. Whoever asks for another is
parked, and parked problems are served in the order of their need, neediest first, as soon as

- fewer than `at_once` responses are in flight. More would only be granted earlier, to problems that may turn out less
  needy than those still to ask: generators are to be busy, and no busier;
- its tokens are free. Free is the budget less what is spent, less what is in flight (responses x mean tokens so far),
  less an even share, total / num_problems, for each problem that has not begun: else the first problems of a run would
  eat what the last ones need;
- no new problem is expected first: all have begun, or `open_at_once` are open, or the driver has had `_PATIENCE` to
  begin one while every open problem was parked.

*No deadlock.* If every open problem is parked and tokens are lacking, the least needy one ends (it is granted 0 and
leaves), which makes room for a problem that has not begun; with none left to begin, all end.

*Bound.* A further round is granted only while its expected tokens are free, and a first one while any are. So the
budget is exceeded by less than one round of each open problem, and by no more than those are longer than expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prm_ray.errors import UserError

_PATIENCE = 0.05
"""Seconds in which a driver with room begins its next problem."""


@dataclass(eq=False)
class _Request:
    share: Share
    count: int
    need: float
    order: int
    turn: asyncio.Future[int]


class Share:
    """What one problem has of the budget."""

    def __init__(self, budget: TokenBudget):
        self._budget = budget
        self.granted = 0
        """Responses so far."""
        self.in_flight = 0
        """Those of them whose tokens are not reported yet."""
        self.tokens = 0
        """Reported."""

    async def more(self, count: int, need: float = 0.0) -> int:
        """Ask for `count` more responses and wait for this problem's turn; gives how many of them may be sampled.

        0: none, the problem ends with what it has. `need` says how much they are worth here; of equals, who asked first
        comes first. The round before must have been reported.
        """
        return await self._budget._ask(self, count, need)

    def spent(self, tokens: int) -> None:
        """Report the tokens of the round that was granted last."""
        self.tokens += tokens
        self._budget._report(self, tokens)


class TokenBudget:
    """Tokens that may be sampled for `num_problems` problems; belongs to one event loop.

    A problem may have `maximum` responses; the driver holds at most `open_at_once` problems open (None: all of them).
    """

    def __init__(self, total: int, num_problems: int, maximum: int, at_once: int = 1, open_at_once: int | None = None):
        limits = {"maximum": maximum, "at_once": at_once, "open_at_once": 1 if open_at_once is None else open_at_once}
        for name, value in limits.items():
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if total < num_problems:
            raise UserError(f"token budget {total}: must be at least a token for each of the {num_problems} problems")
        self.total, self.num_problems, self.maximum = total, num_problems, maximum
        self.spent = 0
        self.num_responses = 0
        """Whose tokens are in `spent`."""
        self._at_once, self._open_at_once = at_once, open_at_once or num_problems
        self._num_opened = self._num_open = self._num_begun = self._in_flight = self._num_asked = 0
        self._parked: list[_Request] = []
        self._patience: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def problem(self) -> AsyncIterator[Share]:
        """A problem while it is open. What it was granted and did not report is free again afterwards."""
        share = Share(self)
        self._num_opened += 1
        self._num_open += 1
        try:
            yield share
        finally:
            self._num_open -= 1
            self._num_begun += share.granted == 0  # it keeps no reserve either
            self._in_flight -= share.in_flight
            self._serve()

    async def _ask(self, share: Share, count: int, need: float) -> int:
        assert share.in_flight == 0, "the round before was not reported"
        count = min(count, self.maximum - share.granted)
        if count < 1:
            return 0
        if share.granted == 0:
            return self._first_round(share, count)
        self._num_asked += 1
        request = _Request(share, count, need, self._num_asked, asyncio.get_running_loop().create_future())
        self._parked.append(request)
        self._serve()
        try:
            return await request.turn
        finally:
            if request in self._parked:  # cancelled
                self._parked.remove(request)

    def _report(self, share: Share, tokens: int) -> None:
        """Serves nobody yet: the problem asks again or ends, and may be the neediest."""
        self.spent += tokens
        self.num_responses += share.in_flight
        self._in_flight -= share.in_flight
        share.in_flight = 0

    def _first_round(self, share: Share, count: int) -> int:
        if self.spent >= self.total:
            return 0
        self._num_begun += 1
        granted = max(1, min(count, self._affordable(count)))
        self._grant(share, granted)
        self._serve()
        return granted

    def _grant(self, share: Share, count: int) -> None:
        share.granted += count
        share.in_flight = count
        self._in_flight += count

    def _affordable(self, count: int) -> int:
        """How many of `count` responses are free; all of them while no response was measured yet."""
        if not self.num_responses or not self.spent:
            return count
        mean_tokens = self.spent / self.num_responses
        reserve = max(0, self.num_problems - self._num_begun) * self.total / self.num_problems
        free = self.total - self.spent - self._in_flight * mean_tokens - reserve
        return max(0, min(count, int(free / mean_tokens + 1e-9)))

    def _serve(self, patient: bool = True) -> None:
        """Wake whoever's turn it is."""
        if self._patience:
            self._patience.cancel()
            self._patience = None
        while self._parked:
            stuck = len(self._parked) == self._num_open
            if self._num_opened < self.num_problems and self._num_open < self._open_at_once and patient:
                if stuck:
                    loop = asyncio.get_running_loop()
                    self._patience = loop.call_later(_PATIENCE, self._serve, False)
                return
            if self._in_flight >= self._at_once:
                return
            neediest = max(self._parked, key=lambda request: (request.need, -request.order))
            count = self._affordable(neediest.count)
            if count:
                self._grant(neediest.share, count)
                self._wake(neediest, count)
            elif not stuck:
                return
            else:
                self._wake(min(self._parked, key=lambda request: (request.need, -request.order)), 0)
                if self._num_opened < self.num_problems:
                    return  # it leaves, and there is room for another

    def _wake(self, request: _Request, granted: int) -> None:
        self._parked.remove(request)
        if not request.turn.done():
            request.turn.set_result(granted)
