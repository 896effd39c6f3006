"""The project's own endpoints: `/v1/rewards` with everything a model says, `/v1/rerank` best first, `/v1/models`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import AliasChoices, Field

from prm_ray.serve.asking import Asking, asking
from prm_ray.serve.bodies import Body, ItemError, Prompted, TokenIds, Usage
from prm_ray.serve.scoring import Ask, Item, ModelFacts, Options, Response
from prm_ray.settings import Aggregation

router = APIRouter(tags=["rewards"])
Asked = Annotated[Asking, Depends(asking)]


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


class RewardsRequest(Prompted):
    responses: Annotated[list[str | TokenIds], Field(min_length=1)]
    """Texts, or token ids as they were sampled."""
    truncate: bool = False
    """Cut a response that is too long behind its prompt; otherwise it has an error."""
    include: list[Literal["tokens"]] = Field([])


class Step(Body):
    text: str
    start: int
    """Characters into the response."""
    end: int
    num_tokens: int
    reward: float
    prefix_reward: float
    """Of the response up to here: the step rewards so far added up; of a head, the step's own logit."""


class Token(Body):
    id: int
    start: int
    end: int
    reward: float | None
    """None of a head, which says nothing about tokens."""


class ResponseRewards(Body):
    """One response. Either `error` is set or the numbers are."""

    index: int
    rewards: dict[str, float] | None = None
    """Aggregation -> reward."""
    steps: list[Step] | None = None
    tokens: list[Token] | None = None
    num_tokens: int = 0
    truncated: bool = False
    error: ItemError | None = None


class RewardsReply(Body):
    id: str
    object: Literal["rewards"] = "rewards"
    model: str
    reward: Reward
    usage: Usage
    results: list[ResponseRewards]


@router.post("/v1/rewards")
async def rewards(request: RewardsRequest, ask: Asked) -> RewardsReply:
    """Rewards of responses to one problem: of each by every aggregation, of its steps, and of its tokens if asked."""
    facts = ask.model(request.model)
    options = Options(truncate=request.truncate, tokens="tokens" in request.include)
    scored = await ask.score(facts, [Ask(request.prompt(), request.responses)], options)
    results = [_rewards_of(index, item, facts, options) for index, item in enumerate(scored.items[0])]
    return RewardsReply(
        id=ask.id(request.request_id),
        model=facts.name,
        reward=Reward.of(facts),
        usage=Usage.of(scored.cost),
        results=results,
    )


def _rewards_of(index: int, item: Item, facts: ModelFacts, options: Options) -> ResponseRewards:
    if item.failure is not None:
        return ResponseRewards(index=index, error=ItemError.of(item.failure))
    return ResponseRewards(
        index=index,
        rewards=item.rewards,
        steps=_steps(item, adds_up=facts.reward == "log_ratio"),
        tokens=_tokens(item) if options.tokens else None,
        num_tokens=item.num_tokens,
        truncated=item.is_truncated,
    )


def _steps(item: Item, adds_up: bool) -> list[Step]:
    steps, place, tokens, so_far = [], 0, 0, 0.0
    for text, end, reward in zip(item.steps, item.step_ends, item.step_rewards, strict=True):
        so_far = so_far + reward if adds_up else reward
        steps.append(
            Step(
                text=text,
                start=place,
                end=place + len(text),
                num_tokens=end - tokens,
                reward=reward,
                prefix_reward=so_far,
            )
        )
        place, tokens = place + len(text), end
    return steps


def _tokens(item: Item) -> list[Token]:
    starts = [0, *item.token_char_ends[:-1]]
    rewards: Sequence[float | None] = item.token_rewards or [None] * len(item.tokens)
    return [
        Token(id=token, start=start, end=end, reward=reward)
        for token, start, end, reward in zip(item.tokens, starts, item.token_char_ends, rewards, strict=True)
    ]


class Document(Body):
    text: str


class RerankRequest(Prompted):
    """As Jina, Cohere and vLLM clients send it, and `aggregation`, `sigmoid` and `truncate`."""

    documents: Annotated[list[str | Document | TokenIds], Field(min_length=1)] = Field(
        validation_alias=AliasChoices("documents", "responses", "texts")
    )
    top_n: int | None = Field(None, ge=0)
    """Return only the best so many; none or 0 = all."""
    return_documents: bool = True
    aggregation: Aggregation | None = None
    """How step rewards become the relevance score; none = the model's own."""
    sigmoid: bool = False
    """Relevance scores between 0 and 1."""
    truncate: bool = False
    max_tokens_per_doc: int | None = Field(None, ge=1)
    """Cohere's key; accepted only where nothing would be cut: send `truncate` to cut at the model's own limit."""

    def responses(self) -> list[Response]:
        return [item.text if isinstance(item, Document) else item for item in self.documents]


class RankedItem(Body):
    index: int
    relevance_score: float | None = None
    document: Document | None = None
    steps: list[str] | None = None
    step_rewards: list[float] | None = None
    error: ItemError | None = None


class Meta(Body):
    """What Cohere's clients look for."""

    api_version: dict[str, str] = Field({"version": "2"})
    billed_units: dict[str, int] = Field({"search_units": 1})


class RerankReply(Body):
    id: str
    model: str
    reward: Reward
    usage: Usage
    results: list[RankedItem]
    meta: Meta = Meta()


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(request: RerankRequest, ask: Asked) -> RerankReply:
    """Responses to one problem, best first; equal rewards keep the order of the request, failed items come last."""
    facts = ask.model(request.model)
    aggregation = request.aggregation or facts.aggregation
    options = Options(truncate=request.truncate)
    scored = await ask.score(facts, [Ask(request.prompt(), request.responses())], options)
    return RerankReply(
        id=ask.id(request.request_id),
        model=facts.name,
        reward=Reward.of(facts, aggregation, request.sigmoid),
        usage=Usage.of(scored.cost),
        results=_ranked(request, scored.items[0], aggregation),
    )


def _ranked(request: RerankRequest, items: list[Item], aggregation: str) -> list[RankedItem]:
    good = [index for index, item in enumerate(items) if item.failure is None]
    good.sort(key=lambda index: -items[index].rewards[aggregation])
    order = good + [index for index, item in enumerate(items) if item.failure is not None]
    return [_ranked_item(request, index, items[index], aggregation) for index in order[: request.top_n or None]]


def _ranked_item(request: RerankRequest, index: int, item: Item, aggregation: str) -> RankedItem:
    if item.failure is not None:
        return RankedItem(index=index, error=ItemError.of(item.failure))
    score = item.rewards[aggregation]
    return RankedItem(
        index=index,
        relevance_score=sigmoid(score) if request.sigmoid else score,
        document=Document(text=item.text) if request.return_documents else None,
        steps=item.steps,
        step_rewards=item.step_rewards,
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


class Model(Body):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "prm_ray"
    reward: str
    with_reference: bool
    aggregation: str
    step_rule: str


class Models(Body):
    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models")
async def models(ask: Asked) -> Models:
    return Models(
        data=[
            Model(
                id=facts.name,
                reward=facts.reward,
                with_reference=facts.with_reference,
                aggregation=facts.aggregation,
                step_rule=facts.step_rule,
            )
            for facts in ask.models()
        ]
    )
