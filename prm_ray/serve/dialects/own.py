"""The project's own endpoints: `/v1/rewards` with everything a model says, and `/v1/models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from prm_ray.scoring.asks import Ask, Item, ModelFacts, Options
from prm_ray.serve.asking import Asked
from prm_ray.serve.bodies import (
    EXAMPLE_PROBLEM,
    EXAMPLE_RESPONSES,
    AtLeastOne,
    Body,
    ItemError,
    Listed,
    Prompted,
    Reward,
    TokenIds,
    Usage,
    example,
)
from prm_ray.serve.strictjson import strict_router
from prm_ray.settings import Aggregation

router = strict_router("rewards")


class RewardsRequest(Prompted):
    model_config = example(problem=EXAMPLE_PROBLEM, responses=EXAMPLE_RESPONSES, include=["tokens"])

    responses: AtLeastOne[str | TokenIds]
    """Texts, or token ids as they were sampled."""
    aggregation: Aggregation | None = None
    """Which of `rewards` the reply names in `reward.aggregation`; none = the model's own."""
    truncate: bool = False
    """Cut a response that is too long behind its prompt; otherwise it has an error."""
    include: Listed[Literal["tokens"]] = Field([])


class Step(Body):
    text: str
    start: int
    """Characters into the response."""
    end: int
    num_tokens: int
    """0 of a published model's step that lies in the last token of the step before it."""
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
        reward=Reward.of(facts, request.aggregation or facts.aggregation),
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


class Model(Body):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "prm_ray"
    reward: str
    with_reference: bool
    aggregation: str
    step_rule: str

    @classmethod
    def of(cls, facts: ModelFacts) -> Model:
        return cls(
            id=facts.name,
            reward=facts.reward,
            with_reference=facts.with_reference,
            aggregation=facts.aggregation,
            step_rule=facts.step_rule,
        )


class Models(Body):
    object: Literal["list"] = "list"
    data: list[Model]
    max_candidates: int
    """Responses of one request."""
    best_of: int | None
    """Candidates of a request to /v1/chat/completions that does not say; none = the server has no generator."""


@router.get("/v1/models")
async def models(ask: Asked) -> Models:
    return Models(
        data=[Model.of(facts) for facts in ask.models()],
        max_candidates=ask.max_candidates,
        best_of=ask.best_of,
    )


@router.get("/v1/models/{name:path}")
async def model(name: str, ask: Asked) -> Model:
    """One of them by its name; 404 if it is not served."""
    return Model.of(ask.model(name))
