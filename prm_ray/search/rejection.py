"""Early rejection: a response whose prefix value is hopeless is dropped before it ends.

Responses are grown step by step. After each step but the last, a response is dropped if its prefix value (the search's
aggregation over the step rewards so far) is below a threshold.

*The threshold* is split-conformal (Vovk et al. 2005; Papadopoulos et al. 2002). Of n right responses that were scored
before, take the lowest value over all their prefixes but the whole response, which cannot be dropped any more. The
threshold is the k-th smallest of these n numbers, k = floor(lost_right * (n + 1)). A further right response that is
exchangeable with them is below it at *any* of its steps with chance at most k / (n + 1) <= lost_right, whatever the
distribution, the aggregation and the reward model. Several responses to one problem are not exchangeable with one to a
new problem: the level then holds on average and varies more with the draw of problems, so calibrate on many problems.

The level speaks of right responses, not of problems: a problem loses its answer only if every response with it is
dropped.

*What did not pay.* A threshold for each step (z-values of prefix values, mean and deviation of each step learnt on
half of the right responses) saved one or two points more tokens for the aggregations that fall with length (`sum`,
`product`) and none for others, and left half as many responses for the level, which then varied more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from prm_ray.errors import UserError
from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch, gather


def calibrate(prefix_values: Sequence[Sequence[float]], correct: Sequence[bool], lost_right: float) -> float:
    """The threshold: of labelled responses, the values of each one's S prefixes (the last is the response itself).

    At most a share `lost_right` of right responses falls below it. Raises `UserError` if there are too few for that.
    """
    right = [values for values, is_right in zip(prefix_values, correct, strict=True) if is_right]
    lowest = sorted(min(values[:-1], default=math.inf) for values in right)
    if any(math.isnan(value) for value in lowest):
        raise UserError("a prefix value of a calibration response is nan: must be a number")
    return lowest[threshold_rank(len(lowest), lost_right) - 1]


def threshold_rank(num_right: int, lost_right: float) -> int:
    """Which of the lowest values of so many right responses is the threshold, from 1 on.

    Raises `UserError` if there are too few.
    """
    if not 0 < lost_right < 1:
        raise UserError(f"search.lost_right {lost_right}: must be between 0 and 1")
    rank = math.floor(lost_right * (num_right + 1) + 1e-9)  # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 below 29
    if rank < 1:
        raise UserError(
            f"search.lost_right {lost_right}: must be at least {1 / (num_right + 1):.3g}, for there are {num_right} "
            "right responses to calibrate on"
        )
    return rank


@dataclass
class Rejection:
    """Grows the responses of one problem and drops the hopeless ones; counts what it dropped."""

    threshold: float
    dropped: list[int] = field(default_factory=list)
    """Numbers of the candidates that were not continued."""

    async def sample(self, search: ProblemSearch, count: int) -> list[Candidate]:
        """`count` responses begun; gives those that ended, at least one unless growing failed.

        If all would be dropped, the one that was best when it was dropped goes on to its end.
        """
        ends = await gather(*(self._grow(search, search.root) for _ in range(count)))
        stopped = [candidate for candidate in ends if candidate and candidate.is_open]
        ended = [candidate for candidate in ends if candidate and candidate.has_ended]
        if not search.ended and stopped:
            best = max(stopped, key=lambda candidate: (candidate.worth(), -candidate.number))
            stopped.remove(best)
            finished = await search.grow_one(best, whole=True)
            ended += [finished] if finished else []
        self.dropped += [candidate.number for candidate in stopped]
        return ended

    async def _grow(self, search: ProblemSearch, start: Candidate) -> Candidate | None:
        """Step by step, until it ends, falls below the threshold, or fails (None)."""
        candidate = await search.grow_one(start)
        while candidate and candidate.is_open and candidate.worth() >= self.threshold:
            candidate = await search.grow_one(candidate)
        return candidate


async def best_of_n_rejecting(search: ProblemSearch, plan: Plan, rejection: Rejection) -> list[Candidate]:
    """Best-of-N whose hopeless responses are dropped on the way. `rejection` belongs to this one problem."""
    return await rejection.sample(search, plan.size)
