"""A response while it is made: what strategies decide about, what generators continue and scorers score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROOT = -1
"""Number of the empty beginning that all candidates of a problem go back to."""


@dataclass(frozen=True)
class Candidate:
    """A response to a problem, or the beginning of one: T tokens, S steps."""

    number: int
    """Among the candidates of its problem, in the order they were proposed; `ROOT` is the empty one."""
    parent: int | None
    """The candidate it continues; None only of the root."""
    tokens: tuple[int, ...] = ()
    """[T], those of its parent first."""
    text: str = ""
    finish_reason: str | None = None
    """`stop` (ended by itself) or `length` (no more room); None = it can go on."""
    num_sampled: int = 0
    """Tokens that were drawn for it, behind its parent's; those beyond its last step's end were dropped."""
    step_rewards: tuple[float, ...] = ()
    """[S], once it is scored."""
    step_ends: tuple[int, ...] = ()
    """[S] token offsets of the steps' ends, where the scorer cuts them."""
    value: float | None = None
    """Its step rewards as one number, by the search's aggregation; None = not scored."""
    answer: str | None = None
    """The final answer it states, of one that has ended."""
    error: str | None = None
    """Why it has no tokens, or no reward. It takes no part in any decision."""

    @property
    def is_open(self) -> bool:
        return self.finish_reason is None and self.error is None

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None and self.error is None

    def worth(self) -> float:
        """Its value. Only for candidates that strategies see, which are all scored."""
        assert self.value is not None, f"candidate {self.number} has no reward"
        return self.value


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first of all that have the same tokens. One that ended there and one that goes on are not the same."""
    first: dict[tuple[tuple[int, ...], bool], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.tokens, candidate.has_ended), candidate)
    return list(first.values())


@dataclass(frozen=True)
class Draw:
    """How a candidate is continued."""

    whole: bool
    """To the end of the response; else to the end of the next step."""
    greedy: bool = False
    """The likeliest token each time, in place of sampling."""
    seed: int = 0


@dataclass(frozen=True)
class Proposal:
    """What a generator gives: a continuation, or the reason why there is none."""

    tokens: tuple[int, ...] = ()
    """Behind those of the candidate that was continued."""
    text: str = ""
    """Of the whole response so far."""
    finish_reason: str | None = None
    num_sampled: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Reward:
    """What a scorer gives: the rewards of all S steps of a candidate, or the reason why there are none."""

    step_rewards: tuple[float, ...] = ()
    value: float | None = None
    error: str | None = None
    step_ends: tuple[int, ...] = ()
