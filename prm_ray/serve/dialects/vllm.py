"""vLLM's pooling endpoints: `/score`, `/classify` and `/pooling`, as its own server answers for a reward model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from prm_ray.scoring.asks import Ask, Conversation, Cost, Item, Options
from prm_ray.serve.asking import Asked
from prm_ray.serve.bodies import (
    EXAMPLE_PROBLEM,
    EXAMPLE_RESPONSES,
    AtLeastOne,
    Body,
    CommonKeys,
    ItemError,
    Listed,
    Message,
    Reward,
    Text,
    TokenIds,
    example,
    sigmoid,
)
from prm_ray.serve.strictjson import strict_router
from prm_ray.settings import Aggregation

router = strict_router("vLLM")

_QUERY_NAMES = ("queries", "query", "text_1", "data_1")
_DOCUMENT_NAMES = ("documents", "items", "text_2", "data_2")


class PoolingKeys(CommonKeys):
    """What all of vLLM's pooling requests may have."""

    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Any value: a response that is too long behind its prompt is cut at its end."""
    use_activation: bool | None = Field(None, validation_alias=AliasChoices("use_activation", "activation"))
    """A sigmoid over the reward; none = the endpoint's own way."""
    aggregation: Aggregation | None = None
    """How step rewards become one number; none = the model's own."""
    priority: int = 0
    """Accepted and not used: requests are answered in the order they come."""
    encoding_format: Literal["float"] = "float"

    def options(self) -> Options:
        return Options(truncate=self.truncate_prompt_tokens is not None)


class PoolingUsage(Body):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0

    @classmethod
    def of(cls, cost: Cost) -> PoolingUsage:
        return cls(prompt_tokens=cost.total_tokens, total_tokens=cost.total_tokens)


class ScoreRequest(PoolingKeys):
    """One query and its documents, or as many of each."""

    model_config = example(queries=EXAMPLE_PROBLEM, documents=EXAMPLE_RESPONSES)

    queries: Annotated[Text | Listed[Text], Field(validation_alias=AliasChoices(*_QUERY_NAMES))]
    documents: Annotated[str | Listed[str], Field(validation_alias=AliasChoices(*_DOCUMENT_NAMES))]

    @model_validator(mode="after")
    def _fit_together(self) -> ScoreRequest:
        if isinstance(self.queries, list) and len(self.queries) != len(self._texts()):
            raise ValueError(
                f"{len(self.queries)} queries and {len(self._texts())} documents: give one query, or one a document"
            )
        if not self._texts():
            raise ValueError("documents must have at least one text")
        return self

    def _texts(self) -> list[str]:
        return [self.documents] if isinstance(self.documents, str) else self.documents

    def asks(self) -> list[Ask]:
        if isinstance(self.queries, str):
            return [Ask(self.queries, self._texts())]
        return [Ask(query, [text]) for query, text in zip(self.queries, self._texts(), strict=True)]


class Score(Body):
    index: int
    object: Literal["score"] = "score"
    score: float | None
    error: ItemError | None = None


class ScoreReply(Body):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    reward: Reward
    data: list[Score]
    usage: PoolingUsage


@router.post("/score")
@router.post("/v1/score")
async def score(request: ScoreRequest, ask: Asked) -> ScoreReply:
    """The reward of each document as a response to its query; raw unless `use_activation`."""
    facts = ask.model(request.model)
    aggregation, activation = request.aggregation or facts.aggregation, bool(request.use_activation)
    scored = await ask.score(facts, request.asks(), request.options())
    items = [item for of_ask in scored.items for item in of_ask]
    return ScoreReply(
        id=ask.id(request.request_id),
        created=int(time.time()),
        model=facts.name,
        reward=Reward.of(facts, aggregation, activation),
        data=[
            Score(index=index, score=number(item, aggregation, activation), error=error_of(item))
            for index, item in enumerate(items)
        ],
        usage=PoolingUsage.of(scored.cost),
    )


class InputRequest(PoolingKeys):
    """Whole conversations: as a chat, as text in the model's chat template, or as token ids of such text."""

    input: Text | TokenIds | AtLeastOne[Text] | AtLeastOne[TokenIds] | None = None
    messages: Annotated[Listed[Message], Field(min_length=2)] | None = None
    """Ends with the assistant's turn: the response."""
    add_special_tokens: bool = False
    """Accepted as False alone: the text has its template's tokens."""

    @model_validator(mode="after")
    def _has_one_input(self) -> InputRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        if self.messages and self.messages[-1].role != "assistant":
            raise ValueError("the last of messages must have the role assistant: it is the response that is scored")
        if self.add_special_tokens:
            raise ValueError("add_special_tokens must be false: input has the tokens of its chat template")
        return self

    def asks(self) -> list[Ask | Conversation]:
        if self.messages is not None:
            *before, response = [message.model_dump() for message in self.messages]
            return [Ask(before, [response["content"]])]
        return [Conversation(each) for each in self._inputs()]

    def _inputs(self) -> Sequence[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        assert self.input is not None
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [each for each in self.input if not isinstance(each, int)]


class Classes(Body):
    index: int
    label: str | None
    probs: list[float] | None
    num_classes: int = 1
    error: ItemError | None = None


class ClassifyReply(Body):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    reward: Reward
    data: list[Classes]
    usage: PoolingUsage


@router.post("/classify")
@router.post("/v1/classify")
async def classify(request: InputRequest, ask: Asked) -> ClassifyReply:
    """One class, whose `probs` hold the reward: through a sigmoid unless `use_activation` is false."""
    facts = ask.model(request.model)
    aggregation, activation = request.aggregation or facts.aggregation, request.use_activation is not False
    scored = await ask.score(facts, request.asks(), request.options())
    items = [item for of_ask in scored.items for item in of_ask]
    return ClassifyReply(
        id=ask.id(request.request_id),
        created=int(time.time()),
        model=facts.name,
        reward=Reward.of(facts, aggregation, activation),
        data=[_classes(index, item, aggregation, activation) for index, item in enumerate(items)],
        usage=PoolingUsage.of(scored.cost),
    )


def _classes(index: int, item: Item, aggregation: str, activation: bool) -> Classes:
    value = number(item, aggregation, activation)
    return Classes(
        index=index,
        label=None if value is None else "LABEL_0",
        probs=None if value is None else [value],
        error=error_of(item),
    )


class PoolingRequest(InputRequest):
    task: Literal["token_classify", "classify"] = "token_classify"
    """Rewards of the steps, one row each; or of the response."""


class Pooled(Body):
    index: int
    object: Literal["pooling"] = "pooling"
    data: list[list[float]] | list[float] | None
    error: ItemError | None = None


class PoolingReply(Body):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    reward: Reward
    data: list[Pooled]
    usage: PoolingUsage


@router.post("/pooling")
async def pooling(request: PoolingRequest, ask: Asked) -> PoolingReply:
    """Step rewards as a model with a STEP pooler gives them; raw unless `use_activation`."""
    facts = ask.model(request.model)
    of_steps, activation = request.task == "token_classify", bool(request.use_activation)
    aggregation = None if of_steps else request.aggregation or facts.aggregation
    scored = await ask.score(facts, request.asks(), request.options())
    items = [item for of_ask in scored.items for item in of_ask]
    return PoolingReply(
        id=ask.id(request.request_id),
        created=int(time.time()),
        model=facts.name,
        reward=Reward.of(facts, aggregation, activation),
        data=[
            Pooled(index=index, data=_pooled(item, aggregation, activation), error=error_of(item))
            for index, item in enumerate(items)
        ],
        usage=PoolingUsage.of(scored.cost),
    )


def _pooled(item: Item, aggregation: str | None, activation: bool) -> list[list[float]] | list[float] | None:
    if item.failure is not None:
        return None
    if aggregation is None:
        return [[sigmoid(reward) if activation else reward] for reward in item.step_rewards]
    value = item.rewards[aggregation]
    return [sigmoid(value) if activation else value]


def number(item: Item, aggregation: str, activation: bool) -> float | None:
    """The reward of a response; none of a failed one."""
    if item.failure is not None:
        return None
    value = item.rewards[aggregation]
    return sigmoid(value) if activation else value


def error_of(item: Item) -> ItemError | None:
    return None if item.failure is None else ItemError.of(item.failure)
