"""Responses to one request, continued as a search asks for them: by a step, or only from the beginning to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from prm_ray.scoring.asks import Refusal, RefusedError
from prm_ray.search.candidate import Candidate, Draw, Proposal
from prm_ray.serve.generator import Generated, Generator
from prm_ray.stages.sampling import Decoding


@dataclass(frozen=True)
class Opening:
    """What all responses to a request begin with: checked and encoded once."""

    prompt: tuple[int, ...]
    """Token ids."""
    decoding: Decoding
    max_tokens: int
    """Of a response."""
    seed: int
    model: str
    """The generator's name."""


class Continuing(Protocol):
    """The responses to one request."""

    model: str
    prompt_tokens: int
    """Read so far, as the generator counts them."""
    max_tokens: int | None
    """Of a response; None = the generator has a limit of its own."""
    has_tokens: bool
    """Candidates have the generator's own token ids; else ids that only tell them apart."""

    async def __call__(self, start: Candidate, draw: Draw) -> Proposal:
        """Raises `RefusedError`."""
        ...


class StepGenerator(Protocol):
    """A generator that can continue a response by a step."""

    async def begin(self, body: dict[str, Any], step_rule: str) -> Continuing:
        """The responses to a request body, in steps of that rule. Raises `RefusedError` for what it cannot do."""
        ...


class StepByStep:
    """Responses that go on from an opening; `proceed` is `ChatModel.continue_response`, wherever that runs."""

    has_tokens = True

    def __init__(
        self,
        opening: Opening,
        step_rule: str,
        proceed: Callable[[Opening, str, Candidate, Draw], Awaitable[Proposal]],
    ):
        self._opening, self._step_rule, self._proceed = opening, step_rule, proceed
        self.model = opening.model
        self.prompt_tokens = len(opening.prompt)
        self.max_tokens: int | None = opening.max_tokens

    async def __call__(self, start: Candidate, draw: Draw) -> Proposal:
        return await self._proceed(self._opening, self._step_rule, start, draw)


class WholeResponses:
    """Responses from the beginning to the end, a request each, by a generator that can do no more."""

    has_tokens = False
    max_tokens: int | None = None

    def __init__(self, generator: Generator, body: dict[str, Any], seconds: float):
        self._generator, self._body, self._seconds = generator, body, seconds
        self.model, self.prompt_tokens = "", 0

    async def __call__(self, start: Candidate, draw: Draw) -> Proposal:
        if start.tokens or not draw.whole:
            raise RefusedError(Refusal(422, "invalid_request", "this generator gives whole responses only"))
        # each is a request of its own: with one seed for all of them they would be the same
        seeded = {"seed": draw.seed} if self._body.get("seed") is not None else {}
        generated = await self._generator.generate(self._body | seeded, 1, self._seconds)
        self.model = self.model or generated.model
        self.prompt_tokens += generated.prompt_tokens
        return _proposal(generated)


def _proposal(generated: Generated) -> Proposal:
    """The characters' numbers stand for tokens, which the generator does not tell."""
    (candidate,) = generated.candidates[:1]
    tokens = tuple(map(ord, candidate.text))
    return Proposal(tokens, candidate.text, candidate.finish_reason, generated.completion_tokens)
