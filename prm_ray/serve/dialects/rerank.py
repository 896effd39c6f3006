"""Responses to one problem, best first: `/v1/rerank` (Jina), `/v2/rerank` (Cohere), and `/rerank`, which vLLM and Text
Embeddings Inference (TEI) share: a body with `texts` is TEI's and gets its bare array.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Discriminator, Field, Tag

from prm_ray.scoring.asks import Ask, Item, Options, Response
from prm_ray.serve.asking import Asked, Asking
from prm_ray.serve.bodies import (
    EXAMPLE_PROBLEM,
    EXAMPLE_RESPONSES,
    AtLeastOne,
    Body,
    CommonKeys,
    Given,
    ItemError,
    Prompted,
    Reward,
    Text,
    TokenIds,
    Usage,
    example,
    sigmoid,
)
from prm_ray.serve.strictjson import strict_router
from prm_ray.settings import Aggregation

router = strict_router("rerank")


class Document(Given):
    text: str


class RerankRequest(Prompted):
    """As Jina, Cohere and vLLM clients send it, and `aggregation`, `sigmoid` and `truncate`."""

    model_config = example(query=EXAMPLE_PROBLEM, documents=EXAMPLE_RESPONSES, top_n=1)

    documents: AtLeastOne[str | Document | TokenIds] = Field(validation_alias=AliasChoices("documents", "responses"))
    top_n: int | None = Field(None, ge=0)
    """Return only the best so many; none or 0 = all."""
    return_documents: bool = True
    aggregation: Aggregation | None = None
    """How step rewards become the relevance score; none = the model's own."""
    sigmoid: bool = False
    """Relevance scores between 0 and 1."""
    truncate: bool = False
    max_tokens_per_doc: int | None = Field(None, ge=0)
    """Cohere's and vLLM's key, accepted and not used: a solution is scored whole, or cut by `truncate`."""

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


class TeiRerankRequest(CommonKeys):
    model_config = example(query=EXAMPLE_PROBLEM, texts=EXAMPLE_RESPONSES, raw_scores=True)

    query: Text
    texts: AtLeastOne[str]
    raw_scores: bool = False
    """False: sigmoids of the rewards."""
    return_text: bool = False
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] = "Right"


class TeiRank(Body):
    index: int
    score: float | None
    text: str | None = None
    error: ItemError | None = None


async def _tei_rerank(request: TeiRerankRequest, ask: Asking) -> list[TeiRank]:
    facts = ask.model(request.model)
    scored = await ask.score(facts, [Ask(request.query, request.texts)], Options(truncate=bool(request.truncate)))
    ranks = []
    for index, item in enumerate(scored.items[0]):
        text = request.texts[index] if request.return_text else None
        if item.failure is not None:
            ranks.append(TeiRank(index=index, score=None, text=text, error=ItemError.of(item.failure)))
        else:
            reward = item.rewards[facts.aggregation]
            ranks.append(TeiRank(index=index, score=reward if request.raw_scores else sigmoid(reward), text=text))
    return sorted(ranks, key=lambda rank: (rank.score is None, -(rank.score or 0.0)))


def _dialect(body: Any) -> str:
    return "<tei>" if isinstance(body, dict) and "texts" in body else "<rerank>"


@router.post("/rerank")
async def rerank_or_tei(
    request: Annotated[
        Annotated[RerankRequest, Tag("<rerank>")] | Annotated[TeiRerankRequest, Tag("<tei>")], Discriminator(_dialect)
    ],
    ask: Asked,
) -> RerankReply | list[TeiRank]:
    """As `/v1/rerank`; with `texts` in place of `documents` as TEI's."""
    return await (_tei_rerank(request, ask) if isinstance(request, TeiRerankRequest) else rerank(request, ask))
