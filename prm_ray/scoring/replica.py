"""One model in memory, and the batcher that merges what its clients ask."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from prm_ray.conversations import split_conversation
from prm_ray.errors import UserError
from prm_ray.models import token_char_ends
from prm_ray.scoring.asks import (
    Ask,
    Batch,
    Conversation,
    Cost,
    Failure,
    Item,
    Options,
    Problem,
    Refusal,
    Response,
    Scored,
)
from prm_ray.scoring.batcher import Batcher, ClosedError, QueueFullError, Size, Timing
from prm_ray.scoring.sizing import (
    TooManyTokensError,
    check_readable,
    encoded_problem,
    is_long,
    open_tokens,
    size_up,
)
from prm_ray.texts import ResponseError, ScoredResponse

Prepared = TypeVar("Prepared")
log = logging.getLogger("prm_ray.scoring")


class AnyScorer(Protocol[Prepared]):
    """`Scorer`, `HeadScorer` and `PublishedScorer` alike."""

    tokenizer: Any

    def prepare(self, problem: Any, responses: Sequence[Any]) -> Prepared: ...

    def score_prepared(self, prepared: Sequence[Prepared]) -> list[list[ScoredResponse]]: ...


@dataclass(frozen=True)
class Limits:
    max_tokens: int
    """Of one request: prompts and responses."""
    max_queued_tokens: int
    token_budget: int
    """Of one batch."""


@dataclass(frozen=True)
class _Encoded:
    """An ask as the model reads it: which of its responses, cut or not; and why the others are left out."""

    prepared: Any | None
    numbers: list[int]
    truncated: set[int]
    failures: dict[int, Failure]


@dataclass(frozen=True)
class _Computed:
    responses: list[ScoredResponse]
    cached_tokens: int
    """Of its whole batch."""


_Outcome = tuple[_Computed, Timing] | BaseException


class Replica:
    """Scores what is asked; must be used inside one event loop."""

    def __init__(self, scorer: AnyScorer[Any], limits: Limits, name: str | None = None, num_threads: int | None = None):
        """`name` is one that no other replica has; none = a random one. `num_threads` are those of the forward pass;
        none = as many as torch has.
        """
        self._scorer, self._limits, self._num_threads = scorer, limits, num_threads
        self._batcher: Batcher[Any, _Computed] | None = None
        self._name = name or uuid.uuid4().hex
        # Encoding goes on while the model computes.
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    async def score(self, asks: Sequence[Ask | Conversation], options: Options) -> Scored | Refusal:
        in_thread = asyncio.get_running_loop().run_in_executor
        try:
            encoded = await in_thread(self._encoder, self._encode, asks, options)
        except TooManyTokensError as error:
            return Refusal(413, "too_many_tokens", str(error))
        except UserError as error:
            return Refusal(422, "invalid_request", str(error))
        jobs = [each.prepared for each in encoded if each.prepared is not None]
        num_tokens = sum(job.num_tokens for job in jobs)
        if num_tokens > self._limits.max_tokens:
            message = f"prompts and responses have {num_tokens} tokens, at most {self._limits.max_tokens} are allowed"
            return Refusal(413, "too_many_tokens", message)
        queued_at = time.time()
        try:
            sizes = [Size(job.num_tokens, len(job.prompt_tokens), job.prompt_tokens) for job in jobs]
            results = await self._batching().submit(jobs, sizes) if jobs else []
        except QueueFullError as full:
            return Refusal(429, "overloaded", "the queue is full; try again later", full.retry_after)
        except ClosedError:
            return Refusal(503, "stopping", "this replica is shutting down; try again", 1)
        items = await in_thread(self._encoder, self._answer, asks, encoded, results, options)
        return Scored(items, self._cost(encoded, results, queued_at))

    def check(self) -> None:
        """Raises if nothing would be answered any more; Serve then starts another replica."""
        if self._batcher is not None and not self._batcher.is_alive:
            raise RuntimeError("the batching task has ended")

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        self._encoder.shutdown()

    def _batching(self) -> Batcher[Any, _Computed]:
        """Made in the loop of the first request: a replica is constructed outside of it.

        How many threads multiply matrices is a property of the thread that asks, so the batcher's has to be told;
        by itself it takes OMP_NUM_THREADS, which Ray sets to 1.
        """
        import torch

        if self._batcher is None:
            limits, threads = self._limits, partial(torch.set_num_threads, self._num_threads or torch.get_num_threads())
            self._batcher = Batcher(self._compute, limits.token_budget, limits.max_queued_tokens, threads)
        return self._batcher

    def _compute(self, jobs: list[Any]) -> list[_Computed]:
        before = self._cached_tokens()
        results = self._scorer.score_prepared(jobs)
        cached = self._cached_tokens() - before
        return [_Computed(responses, cached) for responses in results]

    def _cached_tokens(self) -> int:
        """Only scorers of log-ratios have a cache."""
        return getattr(self._scorer, "num_cached_tokens", 0)

    def _encode(self, asks: Sequence[Ask | Conversation], options: Options) -> list[_Encoded]:
        check_readable(self._scorer, asks)
        if not is_long(self._scorer, asks):
            return [self._encode_one(ask, {}, options) for ask in asks]
        sized = size_up(self._scorer, asks, self._limits.max_tokens, options.truncate)
        return [self._encode_one(each.ask, each.failures, options) for each in sized]

    def _encode_one(self, ask: Ask | Conversation, known: dict[int, Failure], options: Options) -> _Encoded:
        """`known`: responses that are too long, and not to be encoded."""
        if len(known) == len(ask.responses):
            return _Encoded(None, [], set(), known)
        if isinstance(ask, Conversation):
            try:
                ask = Ask(*split_conversation(self._scorer.tokenizer, ask.whole, ask.prompt))
            except ResponseError as error:
                return _Encoded(None, [], set(), {0: Failure(error.kind, str(error))})
        if ask.is_open:
            ask = self._without_end(ask, known)
        if not known and not any(map(_is_blank, ask.responses)):
            try:
                prepared = self._scorer.prepare(ask.problem, ask.responses)
                return _Encoded(prepared, [*range(len(ask.responses))], set(), {})
            except ResponseError:
                pass  # one of them; which others can be scored is found one by one
        problem = encoded_problem(self._scorer, ask.problem)
        good: dict[int, Response] = {}
        truncated: set[int] = set()
        failures = dict(known)
        for number, response in enumerate(ask.responses):
            if number in known:
                continue
            try:
                good[number] = self._readable(problem, response, options)
                if good[number] is not response:
                    truncated.add(number)
            except ResponseError as error:
                failures[number] = Failure(error.kind, str(error).replace("response 0", f"response {number}", 1))
        prepared = self._scorer.prepare(problem, list(good.values())) if good else None
        return _Encoded(prepared, list(good), truncated, failures)

    def _without_end(self, ask: Ask, known: dict[int, Failure]) -> Ask:
        """What the model reads of responses that go on; blank ones, and those that are too long, stay as they are."""
        responses = [
            open_tokens(self._scorer, each)
            if isinstance(each, str) and number not in known and not _is_blank(each)
            else each
            for number, each in enumerate(ask.responses)
        ]
        return Ask(ask.problem, responses)

    def _readable(self, problem: Problem, response: Response, options: Options) -> Response:
        """The response, or as many of its first tokens as fit behind the prompt. Raises `ResponseError`."""
        if _is_blank(response):
            raise ResponseError("response 0 has no text", "empty_response")
        try:
            self._scorer.prepare(problem, [response])
        except ResponseError as error:
            if not options.truncate or not error.fits:
                raise
            return error.fits
        return response

    def _answer(
        self,
        asks: Sequence[Ask | Conversation],
        encoded: Sequence[_Encoded],
        results: Sequence[_Outcome],
        options: Options,
    ) -> list[list[Item]]:
        remaining = iter(results)
        items = []
        for ask, each in zip(asks, encoded, strict=True):
            found = dict(each.failures)
            scored: dict[int, Item] = {}
            if each.prepared is not None:
                result = next(remaining)
                if isinstance(result, BaseException):
                    log.error("request %s: scoring failed", options.request_id, exc_info=result)
                    reason = f"scoring failed ({type(result).__name__}); the server's log has more"
                    found |= dict.fromkeys(each.numbers, Failure("internal_error", reason))
                else:
                    pairs = zip(each.numbers, result[0].responses, strict=True)
                    scored = {number: self._item(one, number in each.truncated, options) for number, one in pairs}
            numbers = range(len(ask.responses))
            items.append([scored[number] if number in scored else Item(found[number]) for number in numbers])
        return items

    def _cost(self, encoded: Sequence[_Encoded], results: Sequence[_Outcome], queued_at: float) -> Cost:
        prepared = [each.prepared for each in encoded if each.prepared is not None]
        prompt_tokens = sum(len(each.prompt_tokens) for each in prepared)
        done = [each for each in results if not isinstance(each, BaseException)]
        queued = min((timing.queued for _, timing in done), default=0.0)
        return Cost(
            prompt_tokens=prompt_tokens,
            response_tokens=sum(each.num_tokens for each in prepared) - prompt_tokens,
            queued_at=queued_at if done else 0.0,
            queued_seconds=queued,
            computed_seconds=max((timing.queued + timing.computed for _, timing in done), default=0.0) - queued,
            batches=tuple(self._batch(*each) for each in {each[1].batch: each for each in done}.values()),
            replica=self._name,
            queued_tokens=0 if self._batcher is None else self._batcher.queued_tokens,
        )

    def _batch(self, computed: _Computed, timing: Timing) -> Batch:
        budget = self._limits.token_budget
        return Batch(timing.batch, timing.batch_jobs, timing.batch_tokens, budget, computed.cached_tokens)

    def _item(self, scored: ScoredResponse, is_truncated: bool, options: Options) -> Item:
        return Item(
            text=scored.text,
            steps=scored.steps,
            step_ends=scored.step_ends,
            step_rewards=scored.step_rewards,
            token_rewards=scored.token_rewards,
            rewards=scored.rewards,
            is_truncated=is_truncated,
            num_tokens=scored.step_ends[-1],
            tokens=scored.tokens if options.tokens else [],
            token_char_ends=token_char_ends(self._scorer.tokenizer, scored.tokens) if options.tokens else [],
            policy_logprobs=scored.policy_logprobs if options.logprobs else [],
            ref_logprobs=scored.ref_logprobs if options.logprobs else [],
        )


def _is_blank(response: Response) -> bool:
    return isinstance(response, str) and not response.strip()
