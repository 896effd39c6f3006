"""Texts that are long: how many tokens they have is found piece by piece, and no further than what may be scored.

A tokenizer reads a megabyte in seconds, and nothing else is encoded meanwhile: what is certainly too much has to be
refused before that. Short requests are not looked at here, so nothing changes for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prm_ray.conversations import prompt_end
from prm_ray.errors import UserError
from prm_ray.scoring.asks import Ask, Conversation, Failure, Problem, Response
from prm_ray.settings import PromptSection
from prm_ray.texts import ResponseError, encode_problem, problem_text

PIECE = 16_384
"""Most characters that are tokenized at a time. A request of at most so many is short."""
_SMALLEST_PIECE = 4096
"""Where few more tokens are needed, about 4 characters each."""
_A_MESSAGE = 64
"""Characters that a chat template puts around a message."""
_AT_A_CUT = 16
"""More tokens than a cut through a text adds to it."""
_LOOKED_AT = 4
"""Responses that are too long for the model fail each alone, until those of one request together have so many times the
tokens that a request may have."""


class TooManyTokensError(UserError):
    """Of a whole request."""


@dataclass(frozen=True)
class Sized:
    """An ask that can be encoded whole, and which of its responses must not be: they are too long."""

    ask: Ask | Conversation
    failures: dict[int, Failure] = field(default_factory=dict)


def is_long(scorer: Any, asks: Sequence[Ask | Conversation]) -> bool:
    return sum(_length(ask, _prompt_of(scorer) is not None) for ask in asks) > PIECE


def check_readable(scorer: Any, asks: Sequence[Ask | Conversation]) -> None:
    """Raises `UserError` for a conversation that a published model is asked for: it may have no chat template by which
    to find the response in it, and would put what it finds into a prompt of its own."""
    if _prompt_of(scorer) is None and any(isinstance(ask, Conversation) for ask in asks):
        raise UserError(
            "a published model has a prompt of its own and reads no whole conversation: send the problem as a text and "
            "the responses apart, as /v1/rewards and /v1/rerank take them"
        )


def encoded_problem(scorer: Any, problem: Problem) -> Problem:
    """Such that to prepare responses to it one by one does not tokenize it again and again. Raises `UserError`."""
    prompt = _prompt_of(scorer)
    return problem if prompt is None else encode_problem(scorer.tokenizer, prompt, problem)


def open_tokens(scorer: Any, text: str) -> Response:
    """Of a text that goes on the tokens, which a model takes as they are; of one with a format of its own the text."""
    return text if _prompt_of(scorer) is None else scorer.tokenizer(text, add_special_tokens=False).input_ids


def size_up(scorer: Any, asks: Sequence[Ask | Conversation], max_tokens: int, truncate: bool) -> list[Sized]:
    """The asks with responses cut behind what the model can read (`truncate`), or named as too long.

    Raises `TooManyTokensError` once they certainly have more tokens than `max_tokens`, `UserError` for a problem that
    is none.
    """
    meter = _Meter(scorer, max_tokens, truncate)
    return [meter.conversation(ask) if isinstance(ask, Conversation) else meter.ask(ask) for ask in asks]


class _Meter:
    """Of one request. `scorer` is one of `Scorer`, `HeadScorer` and `PublishedScorer`."""

    def __init__(self, scorer: Any, max_tokens: int, truncate: bool):
        self._tokenizer, self._max_tokens, self._truncate = scorer.tokenizer, max_tokens, truncate
        self._prompt, self._longest = _prompt_of(scorer), getattr(scorer, "longest", None)
        self._left, self._may_look_at = max_tokens, _LOOKED_AT * max_tokens

    def ask(self, ask: Ask) -> Sized:
        if self._prompt is None:
            return self._of_published(ask)
        self._spend(self._count(problem_text(self._tokenizer, self._prompt, ask.problem), self._left))
        prompt_tokens = encode_problem(self._tokenizer, self._prompt, ask.problem)
        responses, failures = list(ask.responses), {}
        for number, response in enumerate(responses):
            responses[number], failure = self._response(response, number, len(prompt_tokens))
            if failure is not None:
                failures[number] = failure
        return Sized(replace(ask, problem=prompt_tokens, responses=responses), failures)

    def conversation(self, ask: Conversation) -> Sized:
        try:
            end = prompt_end(self._tokenizer, ask.whole, ask.prompt)
        except ResponseError:
            return Sized(ask)  # encoding it says so, before it tokenizes anything
        self._spend(self._count(ask.whole[:end], self._left))
        before = ask.whole[:end]
        num_prompt = len(self._encode(before) if isinstance(before, str) else before)
        response, failure = self._response(ask.whole[end:], 0, num_prompt)
        if failure is not None:
            return Sized(ask, {0: failure})
        whole: Any = before + response  # type: ignore[operator]  # both texts, or both token ids
        return Sized(replace(ask, whole=whole))

    def _of_published(self, ask: Ask) -> Sized:
        if isinstance(ask.problem, str):
            prompt_tokens = self._count(ask.problem, self._left)
            for response in ask.responses:
                self._spend(prompt_tokens + self._count(response, self._left))
        return Sized(ask)

    def _response(self, response: Response, number: int, num_prompt: int) -> tuple[Response, Failure | None]:
        """The response, cut at its end if the model cannot read so far; or why it has no reward."""
        if self._longest is None:
            self._spend(self._count(response, self._left))
            return response, None
        room = max(0, self._longest - num_prompt)
        enough = min(room, self._left if self._truncate else max(self._left, self._may_look_at))
        count, end = self._count_to(response, enough)
        if count <= room:
            self._spend(count)
            return response, None
        if self._truncate:
            self._spend(room)
            return response[: end + PIECE], None
        self._may_look_at -= count
        if self._may_look_at < 0:
            raise self._too_many()
        return response, Failure(
            "too_long",
            f"response {number} has more than {room} tokens behind a prompt of {num_prompt}; "
            f"together they must be at most the model's {self._longest}",
        )

    def _count(self, text: str | list[int], enough: int) -> int:
        return self._count_to(text, enough)[0]

    def _count_to(self, text: str | list[int], enough: int) -> tuple[int, int]:
        """Tokens of a text at least, and how far it was looked at: until there are more than `enough`."""
        if not isinstance(text, str):
            count = min(len(text), enough + 1)
            return count, count
        count = end = 0
        while end < len(text) and count <= enough:
            piece = text[end : end + min(PIECE, _SMALLEST_PIECE + 4 * (enough - count))]
            count += max(0, len(self._encode(piece)) - (_AT_A_CUT if end else 0))
            end += len(piece)
        return count, end

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise self._too_many()

    def _too_many(self) -> TooManyTokensError:
        return TooManyTokensError(f"prompts and responses have more than {self._max_tokens} tokens")


def _prompt_of(scorer: Any) -> PromptSection | None:
    """Into which it puts problems. None of published models: they read problem and response as one text, so the
    problem again with each response, and cut nothing."""
    return getattr(scorer, "prompt", None)


def _length(ask: Ask | Conversation, reads_problem_once: bool) -> int:
    """Characters (or token ids), about."""
    if isinstance(ask, Conversation):
        return len(ask.whole)
    of_problem = (
        sum(len(each["content"]) + _A_MESSAGE if isinstance(each, dict) else 1 for each in ask.problem)
        if isinstance(ask.problem, list)
        else len(ask.problem)
    )
    times = 1 if reads_problem_once else len(ask.responses)
    return of_problem * times + sum(map(len, ask.responses))
