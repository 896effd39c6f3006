"""The gateway: OpenAI's chat completions, where the best of several candidates by the reward is the answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi.responses import StreamingResponse

from prm_ray.core.selection import answered_first, log_vote_weights, majority_vote, vote_picks
from prm_ray.models import build_messages
from prm_ray.scoring.asks import Ask, Item, ModelFacts, Problem, Refusal, RefusedError, Scored
from prm_ray.serve.asking import Asked, Asking
from prm_ray.serve.bodies import ItemError
from prm_ray.serve.dialects.chatbodies import (
    ChatReply,
    ChatRequest,
    ChatUsage,
    Choice,
    ChoiceMessage,
    PrmMetadata,
    ScoredCandidate,
    SearchFacts,
)
from prm_ray.serve.generator import Generated
from prm_ray.serve.searching import Wanted, search
from prm_ray.serve.searchlimits import check_search
from prm_ray.serve.strictjson import strict_router

router = strict_router("gateway")


_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatReply,
        "description": "The answer, or with `stream` the same in server-sent events.",
        "content": {"text/event-stream": {}},
    }
}


@router.post("/v1/chat/completions", response_model=None, responses=_REPLIES)
async def chat_completions(request: ChatRequest, ask: Asked) -> ChatReply | StreamingResponse:
    """The best of `best_of` candidates by the reward model, or the `n` best of them."""
    reply = await _answer(request, ask)
    if not request.stream:
        return reply
    with_usage = bool((request.stream_options or {}).get("include_usage"))
    return StreamingResponse(_events(reply, with_usage), media_type="text/event-stream")


async def _answer(request: ChatRequest, ask: Asking) -> ChatReply:
    facts = ask.model(request.prm.model)
    count = max(request.n, request.best_of or ask.gateway().best_of)
    messages = [message.model_dump() for message in request.messages]
    problem: Problem = messages
    if len(messages) == 1:  # generator and reward model each have a prompt that they learnt to answer problems in
        text = messages[0]["content"]
        problem, messages = text, build_messages(ask.gateway().prompt, text)
    body = request.for_generator() | {"messages": messages}
    if request.prm.strategy != "best_of_n":
        return await _searched(request, ask, facts, problem, body, count)
    generated = await ask.generate(body, count)
    scored = await ask.score(facts, [Ask(problem, [each.text for each in generated.candidates])])
    return _reply(request, ask, facts, generated, scored, count)


async def _searched(
    request: ChatRequest, ask: Asking, facts: ModelFacts, problem: Problem, body: dict[str, Any], count: int
) -> ChatReply:
    gateway, strategy = ask.gateway(), request.prm.strategy
    plan = request.prm.plan(count, gateway.search)
    check_search(strategy, plan, body.get("temperature"), gateway.steps is not None, ask.max_candidates)
    wanted = Wanted(strategy, plan, problem, body, request.prm.aggregation or facts.aggregation)
    found = await search(ask, facts, wanted)
    reply = _reply(request, ask, facts, found.generated, found.scored, count)
    reply.prm_metadata.search = SearchFacts(
        strategy=strategy,
        num_drawn=found.num_drawn,
        num_ended=len(found.generated.candidates),
        sampled_tokens=found.generated.completion_tokens,
    )
    return reply


def _reply(
    request: ChatRequest, ask: Asking, facts: ModelFacts, generated: Generated, scored: Scored, count: int
) -> ChatReply:
    (items,) = scored.items
    aggregation = request.prm.aggregation or facts.aggregation
    answers = [ask.gateway().find_answer(each.text) for each in generated.candidates]
    order = _order(items, answers, aggregation, request.prm.vote)
    chosen = order[: request.n]
    failures = [item.failure.message for item in items if item.failure is not None]
    metadata = PrmMetadata(
        model=facts.name,
        aggregation=aggregation,
        vote=request.prm.vote,
        num_candidates=len(items),
        num_requested=count,
        rewards=[_reward(items[index], aggregation) for index in chosen],
        step_rewards=[items[index].step_rewards or None for index in chosen],
        problems=[*generated.problems, *dict.fromkeys(failures)],
        scored_tokens=scored.cost.total_tokens,
        candidates=_candidates(generated, items, answers, aggregation) if request.prm.return_candidates else None,
    )
    usage = ChatUsage(
        prompt_tokens=generated.prompt_tokens,
        completion_tokens=generated.completion_tokens,
        total_tokens=generated.prompt_tokens + generated.completion_tokens,
    )
    choices = [
        Choice(
            index=place,
            message=ChoiceMessage(content=generated.candidates[index].text),
            finish_reason=generated.candidates[index].finish_reason,
        )
        for place, index in enumerate(chosen)
    ]
    return ChatReply(
        id=f"chatcmpl-{ask.id(None)}",
        created=int(time.time()),
        model=generated.model or request.model or facts.name,
        choices=choices,
        usage=usage,
        prm_metadata=metadata,
    )


def _order(items: list[Item], answers: list[str | None], aggregation: str, vote: str) -> list[int]:
    """Candidates best first, by the rules that a report measures (docs/method.md): one without a final answer comes
    behind all that have one. Those that could not be scored are last. Raises `RefusedError` if none could be.
    """
    good = [index for index, item in enumerate(items) if item.failure is None]
    if not good:
        reasons = "; ".join(dict.fromkeys(item.failure.message for item in items if item.failure is not None))
        raise RefusedError(Refusal(502, "not_scored", f"none of {len(items)} candidates could be scored: {reasons}"))
    rewards = [items[index].rewards[aggregation] for index in good]
    voted = [answers[index] for index in good]
    order = np.argsort(-answered_first(rewards, voted)).tolist()
    if vote != "none" and any(answer is not None for answer in voted):
        winner = (
            majority_vote(voted)
            if vote == "majority"
            else vote_picks(voted, log_vote_weights(rewards, "softmax"), np.ones((1, len(good)), dtype=bool))[0]
        )
        agreeing = [place for place in order if voted[place] == voted[winner]]
        order = agreeing + [place for place in order if place not in agreeing]
    return [good[place] for place in order] + [index for index in range(len(items)) if index not in good]


def _reward(item: Item, aggregation: str) -> float | None:
    return None if item.failure else item.rewards[aggregation]


def _candidates(
    generated: Generated, items: list[Item], answers: list[str | None], aggregation: str
) -> list[ScoredCandidate]:
    return [
        ScoredCandidate(
            text=candidate.text,
            reward=_reward(item, aggregation),
            step_rewards=item.step_rewards or None,
            steps=item.steps or None,
            answer=answer,
            error=None if item.failure is None else ItemError.of(item.failure),
        )
        for candidate, item, answer in zip(generated.candidates, items, answers, strict=True)
    ]


async def _events(reply: ChatReply, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer that is chosen, a line at a time: before that there is nothing to tell.

    Every event has a choice, for clients look no further than `choices[0]`; but that of the usage, which is asked for.
    """
    head = {
        "id": reply.id,
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
    }

    def chunk(index: int, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        return _event(head | {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]} | more)

    for choice in reply.choices:
        yield chunk(choice.index, {"role": "assistant", "content": ""})
        for piece in choice.message.content.splitlines(keepends=True):
            yield chunk(choice.index, {"content": piece})
        is_last = choice is reply.choices[-1]
        more = {"prm_metadata": reply.prm_metadata.model_dump()} if is_last else {}
        yield chunk(choice.index, {}, choice.finish_reason, **more)
    if with_usage:
        yield _event(head | {"choices": [], "usage": reply.usage.model_dump()})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
