"""The HTTP bodies. `/rerank` speaks the dialect that Jina, Cohere and vLLM clients know; `/score` is our own.

Nothing here imports Ray or torch. A failed item has an `error` and null instead of numbers, never a reward of 0.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from prm_ray.settings import Aggregation

Text = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, pattern=r"\S")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: Text


class PromptedRequest(Body):
    """What both requests share: the prompt, as a problem's text (put into the run's own prompt) or as chat messages."""

    problem: Text | None = Field(None, validation_alias=AliasChoices("problem", "query"))
    messages: list[Message] | None = Field(None, min_length=1)
    model: str | None = None
    """Accepted because clients send it; this server has one model and names it in the reply."""
    user: str | None = None
    request_id: str | None = Field(None, max_length=200)

    @model_validator(mode="after")
    def _one_prompt(self) -> PromptedRequest:
        if (self.problem is None) == (self.messages is None):
            raise ValueError("give either problem (or query) or messages")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError(
                "the last of messages must have the role user: responses are candidates for what comes next"
            )
        return self

    def prompt(self) -> str | list[dict[str, str]]:
        return self.problem if self.problem is not None else [m.model_dump() for m in self.messages or []]


class ScoreRequest(PromptedRequest):
    responses: list[str] = Field(min_length=1)


class Document(Body):
    text: str


class RerankRequest(PromptedRequest):
    documents: list[str | Document] = Field(
        min_length=1, validation_alias=AliasChoices("documents", "responses", "texts")
    )
    aggregation: Aggregation | None = None
    """How step rewards become the relevance score; none = the run's own, see evaluate.aggregation."""
    top_n: int | None = Field(None, ge=0)
    """Return only the best so many; none or 0 = all."""
    return_documents: bool = True

    def responses(self) -> list[str]:
        return [item if isinstance(item, str) else item.text for item in self.documents]


class Usage(Body):
    prompt_tokens: int
    """The prompt, counted once: it is computed once for all responses."""
    total_tokens: int
    """Prompt and all responses."""


class ItemError(Body):
    type: str
    message: str


class ScoredItem(Body):
    """One response. Either `error` is set or the numbers are."""

    index: int
    rewards: dict[str, float] | None = None
    """Aggregation -> response reward."""
    step_rewards: list[float] | None = None
    steps: list[str] | None = None
    num_tokens: int = 0
    error: ItemError | None = None


class ScoreReply(Body):
    id: str
    model: str
    usage: Usage
    results: list[ScoredItem]


class RankedItem(Body):
    index: int
    relevance_score: float | None = None
    document: Document | None = None
    steps: list[str] | None = None
    step_rewards: list[float] | None = None
    error: ItemError | None = None


class RerankReply(Body):
    id: str
    model: str
    aggregation: Aggregation
    usage: Usage
    results: list[RankedItem]


def rank(request: RerankRequest, items: list[ScoredItem], aggregation: Aggregation) -> list[RankedItem]:
    """Best first; equal rewards keep the order of the request; failed items come last."""
    scored = [(item.rewards[aggregation], item) for item in items if item.rewards is not None]
    scored.sort(key=lambda pair: -pair[0])
    ranked = [item for _, item in scored] + [item for item in items if item.rewards is None]
    responses = request.responses()
    return [
        RankedItem(
            index=item.index,
            relevance_score=item.rewards[aggregation] if item.rewards else None,
            document=Document(text=responses[item.index]) if request.return_documents else None,
            steps=item.steps,
            step_rewards=item.step_rewards,
            error=item.error,
        )
        for item in ranked[: request.top_n or None]
    ]


def error_body(kind: str, message: str) -> dict[str, Any]:
    """The body of every reply that is not 200."""
    return {"error": {"type": kind, "message": message}}


def validation_message(errors: list[Any]) -> str:
    """One line out of pydantic's list: `documents.0: Input should be a valid string; ...`, at most three of them."""
    lines = []
    for error in errors[:3]:
        where = ".".join(str(part) for part in error["loc"] if part != "body")
        message = "unknown key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    if len(errors) > 3:
        lines.append(f"and {len(errors) - 3} more")
    return "; ".join(lines)
