"""What passes between the HTTP side and the replicas with the models: plain values, no Ray, no torch.

A refusal is a value too, for an exception would cross processes as a traceback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

Problem = str | list[dict[str, str]] | list[int]
Response = str | list[int]


_BEGINNING = 200
"""Letters (or tokens) of a conversation by which it is taken to be of a problem; of a problem also its last ones."""


@dataclass(frozen=True)
class Ask:
    """Responses to one problem: texts, messages or token ids, as `Scorer.score` takes them."""

    problem: Problem
    responses: Sequence[Response]
    is_open: bool = False
    """They go on: texts that are not closed by the end-of-turn token. A published model's format closes them."""


@dataclass(frozen=True)
class Conversation:
    """A prompt and one response in a single text of the model's chat template, or its token ids."""

    whole: str | list[int]
    prompt: str | None = None
    """Where it is known, the text that the prompt is; else the response is what follows the last assistant header."""

    @property
    def responses(self) -> Sequence[Response]:
        return (self.whole,)


@dataclass(frozen=True)
class Options:
    truncate: bool = False
    """Cut a response that is too long behind its prompt, instead of giving it an error."""
    tokens: bool = False
    """Token ids and where each token ends in the text, too."""
    request_id: str = ""
    """By which a failure is found in a replica's log."""
    logprobs: bool = False
    """Log-probs of the tokens, too."""


@dataclass(frozen=True)
class Failure:
    """Why a response has no reward."""

    kind: str
    message: str


@dataclass(frozen=True)
class Item:
    """One response: T tokens, S steps; or why it has none."""

    failure: Failure | None = None
    text: str = ""
    steps: list[str] = field(default_factory=list)
    step_ends: list[int] = field(default_factory=list)
    """Token offsets [S]."""
    step_rewards: list[float] = field(default_factory=list)
    token_rewards: list[float] = field(default_factory=list)
    """[T]; none of a model with a head."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Aggregation -> reward."""
    is_truncated: bool = False
    num_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    token_char_ends: list[int] = field(default_factory=list)
    policy_logprobs: list[float] = field(default_factory=list)
    """[T]; none of a model with a head."""
    ref_logprobs: list[float] = field(default_factory=list)
    """[T]; none without a reference."""


@dataclass(frozen=True)
class Batch:
    """One pass of a replica's model, of which a request was a part."""

    number: int
    """Among those of its replica."""
    num_jobs: int
    num_tokens: int
    token_budget: int
    cached_tokens: int
    """Of all its jobs: those that the prefix cache had."""


@dataclass(frozen=True)
class Cost:
    """Of one request: tokens, and seconds by stage; and how its replica is."""

    prompt_tokens: int = 0
    """Each prompt once: it is computed once for all its responses."""
    response_tokens: int = 0
    queued_at: float = 0.0
    """Unix time in seconds by the replica's clock; 0 if nothing had to be computed."""
    queued_seconds: float = 0.0
    """Until the first of its batches began."""
    computed_seconds: float = 0.0
    """From then until the last of its batches ended."""
    batches: tuple[Batch, ...] = ()
    replica: str = ""
    """A name that no other replica has."""
    queued_tokens: int = 0
    """Of others, which wait there when the answer leaves."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True)
class Scored:
    """Items of each ask, in the order of the responses."""

    items: list[list[Item]]
    cost: Cost


@dataclass(frozen=True)
class Refusal:
    """Why nothing of a request was scored, and the HTTP status that says so."""

    status: int
    kind: str
    message: str
    retry_after: int | None = None
    """Seconds after which another try makes sense."""


SERVER_FAILED = Refusal(500, "internal_error", "the server failed; its log says why")
"""No traceback leaves the process; the log has it, with the request's id."""


class RefusedError(Exception):
    """Carries a `Refusal` to where the reply is made."""

    def __init__(self, refusal: Refusal):
        super().__init__(refusal)
        self.refusal = refusal


@dataclass(frozen=True)
class ModelFacts:
    """What a reply says about the model that gave the rewards."""

    name: str
    reward: str
    """`log_ratio`, a head, or the style of a published model."""
    with_reference: bool
    aggregation: str
    """The run's own; a request may ask for another."""
    step_rule: str


class Backend(Protocol):
    """The models that the HTTP side can ask."""

    models: dict[str, ModelFacts]

    async def score(self, model: str, asks: Sequence[Ask | Conversation], options: Options) -> Scored:
        """Raises `RefusedError`."""
        ...

    async def num_ready(self) -> dict[str, int]:
        """Model -> replicas that can answer now."""
        ...


def session_of(ask: Ask | Conversation) -> str:
    """The same for responses to the same problem, so that they meet in one replica's prefix cache."""
    if isinstance(ask, Ask):
        known: object = _ends(ask.problem)
    else:
        known = _ends(ask.prompt) if ask.prompt else ask.whole[:_BEGINNING]
    return hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


def _ends(problem: Problem) -> object:
    """What tells problems apart, of one that may have megabytes."""
    if isinstance(problem, list):
        messages = [*problem[:_BEGINNING], *problem[-_BEGINNING:]]
        return len(problem), [_ends(each["content"]) if isinstance(each, dict) else each for each in messages]
    return len(problem), problem[:_BEGINNING], problem[-_BEGINNING:]
