"""TRL's teacher server: `/get_sequence_logprobs/`, log-probs of given tokens under the policy and its reference.

Exact are the log-probs of the tokens themselves. Which other tokens would have been likelier is not computed: of
`top_logprobs` 1 TRL's client gets the padding it knows (minus infinity), never a token that is not the likeliest.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import DTypeLike
from pydantic import Field, model_validator

from prm_ray.scoring.asks import Ask, Failure, Item, ModelFacts, Options, Refusal, RefusedError
from prm_ray.serve.asking import Asked
from prm_ray.serve.bodies import AtLeastOne, Body, CommonKeys, Listed, TokenId, TokenIds, example
from prm_ray.serve.strictjson import strict_router

router = strict_router("TRL")

_STATUS = {"too_long": 413, "internal_error": 500}
"""Of a request with a sequence that fails; others are 422."""


class SequenceLogprobsRequest(CommonKeys):
    model_config = example(sequences=[[504, 1247, 30, 504, 9]], prompt_lengths=[3])

    sequences: AtLeastOne[TokenIds]
    """Token ids of prompt and completion."""
    prompt_lengths: Listed[Annotated[int, Field(ge=1)]]
    """Tokens of each sequence that are its prompt."""
    top_logprobs: int = 0
    """0 or 1: entries a token in `logprobs`. They hold nothing; see `actual_logprobs`."""
    temperature: float = 1.0
    """1 alone."""
    response_format: Literal["json", "binary"] = "json"

    @model_validator(mode="after")
    def _fit_together(self) -> SequenceLogprobsRequest:
        if self.top_logprobs not in (0, 1):
            raise ValueError(f"top_logprobs is {self.top_logprobs}; it must be 0 or 1: only given tokens are scored")
        if self.temperature != 1:
            raise ValueError(f"temperature is {self.temperature:g}; it must be 1: the model's own log-probs are given")
        if len(self.sequences) != len(self.prompt_lengths):
            raise ValueError(
                f"{len(self.sequences)} sequences and {len(self.prompt_lengths)} prompt_lengths: give one for each"
            )
        for index, (tokens, length) in enumerate(zip(self.sequences, self.prompt_lengths, strict=True)):
            if length > len(tokens):
                raise ValueError(f"prompt_lengths.{index} is {length}, but sequences.{index} has {len(tokens)} tokens")
        return self

    def completions(self) -> list[list[int]]:
        return [tokens[length:] for tokens, length in zip(self.sequences, self.prompt_lengths, strict=True)]

    def by_prompt(self) -> dict[tuple[TokenId, ...], list[int]]:
        """Prompt -> the sequences that begin with it; those that end with it have nothing to score."""
        found: dict[tuple[TokenId, ...], list[int]] = {}
        for index, (tokens, length) in enumerate(zip(self.sequences, self.prompt_lengths, strict=True)):
            if length < len(tokens):
                found.setdefault(tuple(tokens[:length]), []).append(index)
        return found


class SequenceLogprobs(Body):
    """B sequences, their T completion tokens each, K = `top_logprobs`. No reference: `reference_logprobs` is null."""

    model: str
    logprobs: list[list[list[float | None]]]
    """[B, T, K] nulls."""
    logprob_token_ids: list[list[list[int]]]
    """[B, T, K] zeros."""
    actual_logprobs: list[list[list[float]]]
    """[B, T, 1] of the tokens in `sequences`."""
    actual_token_ids: list[list[list[int]]]
    reference_logprobs: list[list[list[float]]] | None
    """The same as `actual_logprobs`, of the reference model."""


class BinarySequenceLogprobs(Body):
    """The same in base64 of little-endian arrays, padded to the longest T: float32 with -inf, int32 with 0."""

    model: str
    shape: list[int]
    """[B, longest T, K] of `logprobs` and `token_ids`; the others have 1 in place of K."""
    completion_lengths: list[int]
    """T of each sequence."""
    logprobs_b64: str
    token_ids_b64: str
    actual_logprobs_b64: str
    actual_token_ids_b64: str
    reference_logprobs_b64: str | None


@router.post("/get_sequence_logprobs/")
async def get_sequence_logprobs(
    request: SequenceLogprobsRequest, ask: Asked
) -> SequenceLogprobs | BinarySequenceLogprobs:
    """Log-probs of the tokens behind each prompt. All sequences or none: there is no place for an error beside them."""
    facts = ask.model(request.model)
    if facts.reward != "log_ratio":
        message = f"model {facts.name!r} has no log-probs of tokens: its rewards are a {facts.reward}'s"
        raise RefusedError(Refusal(422, "invalid_request", message))
    ask.check_count(len(request.sequences))  # a row of the reply's arrays each, also where nothing is scored
    completions, groups = request.completions(), request.by_prompt()
    asks = [Ask(list(prompt), [completions[index] for index in group]) for prompt, group in groups.items()]
    scored = await ask.score(facts, asks, Options(logprobs=True)) if asks else None
    items = [Item()] * len(completions)
    for group, of_group in zip(groups.values(), scored.items if scored else [], strict=True):
        for number, (index, item) in enumerate(zip(group, of_group, strict=True)):
            if item.failure is not None:
                raise RefusedError(_refusal(index, number, item.failure))
            items[index] = item
    shape = _binary if request.response_format == "binary" else _json
    return shape(facts, items, completions, request.top_logprobs)


def _refusal(index: int, number: int, failure: Failure) -> Refusal:
    message = failure.message.replace(f"response {number}", f"sequences.{index}", 1)
    return Refusal(_STATUS.get(failure.kind, 422), failure.kind, message)


def _json(facts: ModelFacts, items: list[Item], completions: list[list[int]], top: int) -> SequenceLogprobs:
    return SequenceLogprobs(
        model=facts.name,
        logprobs=[[[None] * top for _ in tokens] for tokens in completions],
        logprob_token_ids=[[[0] * top for _ in tokens] for tokens in completions],
        actual_logprobs=[[[value] for value in item.policy_logprobs] for item in items],
        actual_token_ids=[[[token] for token in tokens] for tokens in completions],
        reference_logprobs=[[[value] for value in item.ref_logprobs] for item in items]
        if facts.with_reference
        else None,
    )


def _binary(facts: ModelFacts, items: list[Item], completions: list[list[int]], top: int) -> BinarySequenceLogprobs:
    lengths = [len(tokens) for tokens in completions]
    shape = [len(completions), max(lengths), top]
    reference = _base64([item.ref_logprobs for item in items], lengths, "<f4") if facts.with_reference else None
    return BinarySequenceLogprobs(
        model=facts.name,
        shape=shape,
        completion_lengths=lengths,
        logprobs_b64=_encoded(np.full(shape, -np.inf, "<f4")),
        token_ids_b64=_encoded(np.zeros(shape, "<i4")),
        actual_logprobs_b64=_base64([item.policy_logprobs for item in items], lengths, "<f4"),
        actual_token_ids_b64=_base64(completions, lengths, "<i4"),
        reference_logprobs_b64=reference,
    )


def _base64(rows: Sequence[Sequence[float]], lengths: list[int], dtype: DTypeLike) -> str:
    """Rows of these lengths, padded."""
    array: np.ndarray[Any, Any] = np.full((len(rows), max(lengths)), 0 if dtype == "<i4" else -np.inf, dtype)
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values
    return _encoded(array)


def _encoded(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
