"""What all dialects share: how a problem and its responses are given, and how an error looks.

Nothing here imports Ray or torch. A failed item has an `error` and null instead of numbers, never a reward of 0.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_serializer,
    model_validator,
)

from prm_ray.scoring.asks import Cost, Failure, ModelFacts, Problem

Text = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, pattern=r"\S")]
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Each = TypeVar("_Each")
Listed = Annotated[list[_Each], Field(fail_fast=True)]
"""The first wrong item ends it: a body has room for millions of them, and each would be an error of a kilobyte."""
AtLeastOne = Annotated[list[_Each], Field(min_length=1, fail_fast=True)]
TokenIds = AtLeastOne[TokenId]
_MOST_KEYS = 256
"""Of one object: more than the parameters of any generator."""


class Body(BaseModel):
    """Strict: a key that is not known is refused, so that a typing error is not taken for a default."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Given(Body):
    """What a client sends, or an object in it."""

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        """A body has room for a million unknown keys, and each would be an error of a kilobyte."""
        if isinstance(value, dict) and len(value) > _MOST_KEYS:
            raise ValueError(f"an object has {len(value)} keys; it must have at most {_MOST_KEYS}")
        return value


class TextPart(Given):
    type: Literal["text"]
    text: Text


class Message(Given):
    role: Literal["system", "user", "assistant"]
    content: Text | AtLeastOne[TextPart]
    """A text, or its parts, as many chat clients send them."""

    @field_serializer("content")
    def _joined(self, content: str | list[TextPart]) -> str:
        return content if isinstance(content, str) else "".join(part.text for part in content)


class CommonKeys(Given):
    """Keys that many clients send with everything."""

    model: str | None = Field(None, max_length=300)
    """One of /v1/models; none = the first."""
    user: str | None = Field(None, max_length=1000)
    """Accepted and not used."""
    request_id: str | None = Field(None, max_length=200)
    """Comes back as the reply's `id`."""


class Prompted(CommonKeys):
    """A problem in one of three forms."""

    problem: Text | None = Field(None, validation_alias=AliasChoices("problem", "query"))
    """Its text, put into the prompt that the model was trained with."""
    messages: AtLeastOne[Message] | None = None
    """A chat that ends with the user's turn, put into the model's chat template."""
    prompt_tokens: TokenIds | None = None
    """Token ids of the whole prompt, taken as they are."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Prompted:
        given = [self.problem is not None, self.messages is not None, self.prompt_tokens is not None]
        if sum(given) != 1:
            raise ValueError("give one of problem (or query), messages and prompt_tokens")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError(
                "the last of messages must have the role user: responses are candidates for what comes next"
            )
        return self

    def prompt(self) -> Problem:
        if self.problem is not None:
            return self.problem
        if self.messages is not None:
            return [message.model_dump() for message in self.messages]
        return list(self.prompt_tokens or [])


class Usage(Body):
    prompt_tokens: int
    """The prompt, counted once: it is computed once for all its responses."""
    completion_tokens: int
    """All responses."""
    total_tokens: int

    @classmethod
    def of(cls, cost: Cost) -> Usage:
        return cls(
            prompt_tokens=cost.prompt_tokens, completion_tokens=cost.response_tokens, total_tokens=cost.total_tokens
        )


class ItemError(Body):
    type: str
    message: str

    @classmethod
    def of(cls, failure: Failure) -> ItemError:
        return cls(type=failure.kind, message=failure.message)


class Reward(Body):
    """Which number a score is."""

    kind: str
    """`log_ratio`: of the model to its reference. Otherwise the head or published style whose logits these are."""
    with_reference: bool
    aggregation: str | None = None
    """How step rewards became one number."""
    sigmoid: bool = False

    @classmethod
    def of(cls, facts: ModelFacts, aggregation: str | None = None, sigmoid: bool = False) -> Reward:
        return cls(kind=facts.reward, with_reference=facts.with_reference, aggregation=aggregation, sigmoid=sigmoid)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


class Error(Body):
    type: str
    message: str


class ErrorReply(Body):
    """The body of every reply that is not 2xx."""

    error: Error


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in {
        400: "the body is no JSON, or the generator cannot do what it asks for",
        401: "no valid key",
        404: "no such model, or no generator",
        408: "the body came too slowly",
        413: "too large, too many candidates, or too many tokens",
        415: "the body's Content-Type is not application/json",
        422: "a field that is wrong, named in the message",
        429: "the queue is full, or the key's rate is used up: try again after Retry-After seconds",
        500: "the server failed; its log says why",
        502: "the generator failed",
        503: "no replica is there at the moment: try again",
        504: "not answered in time",
    }.items()
}
"""For the OpenAPI document."""


def example(**body: Any) -> ConfigDict:
    """Configuration of a body that the OpenAPI document shows so filled in."""
    return ConfigDict(json_schema_extra={"examples": [body]})


EXAMPLE_PROBLEM = "12 + 45 - 8"
EXAMPLE_RESPONSES = ["12 + 45 = 57\n57 - 8 = 49\nAnswer: 49", "12 + 45 = 58\n58 - 8 = 50\nAnswer: 50"]


def error_body(kind: str, message: str) -> dict[str, Any]:
    """The body of every reply that is not 2xx."""
    return {"error": {"type": kind, "message": message}}


def validation_message(errors: list[Any]) -> str:
    """One line out of pydantic's list: `documents.0: Input should be a valid string; ...`, at most three of them."""
    lines = []
    for error in errors[:3]:
        parts = [str(part)[:100] for part in error["loc"] if part != "body"]
        where = ".".join(
            part for part in parts if not part.startswith("<")
        )  # names of dialects say nothing to a client
        message = "unknown key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    if len(errors) > 3:
        lines.append(f"and {len(errors) - 3} more")
    return "; ".join(lines)
