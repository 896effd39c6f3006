"""OpenRLHF's remote reward model: `/get_reward`, with step rewards and per-item errors beside what its client reads."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_validator

from prm_ray.scoring.asks import Conversation
from prm_ray.serve.asking import Asked
from prm_ray.serve.bodies import (
    EXAMPLE_PROBLEM,
    EXAMPLE_RESPONSES,
    AtLeastOne,
    Body,
    CommonKeys,
    ItemError,
    Listed,
    Reward,
    Text,
    Usage,
    example,
    sigmoid,
)
from prm_ray.serve.dialects.vllm import error_of
from prm_ray.serve.strictjson import strict_router
from prm_ray.settings import Aggregation

router = strict_router("OpenRLHF")


class GetRewardRequest(CommonKeys):
    """`query`: prompt and response in one text, special tokens kept. Keys that its forks add are not refused."""

    model_config = ConfigDict(extra="ignore") | example(
        query=[f"<|im_start|>user\n{EXAMPLE_PROBLEM}<|im_end|>\n<|im_start|>assistant\n{EXAMPLE_RESPONSES[0]}"]
    )

    query: AtLeastOne[Text]
    prompts: Listed[str] | None = None
    """The prompts that `query` begin with; without them the response is what follows the last assistant header."""
    labels: list[Any] | None = None
    """Accepted and not used."""
    aggregation: Aggregation | None = None

    @model_validator(mode="after")
    def _as_many(self) -> GetRewardRequest:
        if self.prompts and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.query)} query and {len(self.prompts)} prompts: there must be one for each")
        return self

    def conversations(self) -> list[Conversation]:
        if not self.prompts:
            return [Conversation(text) for text in self.query]
        return [Conversation(text, prompt or None) for text, prompt in zip(self.query, self.prompts, strict=True)]


class GetRewardReply(Body):
    rewards: list[float | None]
    """Null for an item that has an error: a client that needs a number must not take it for 0."""
    scores: list[float | None]
    """Sigmoids of the rewards: between 0 and 1, as its dynamic filtering wants them."""
    extra_logs: dict[str, list[float | None]]
    step_rewards: list[list[float] | None]
    step_ends: list[list[int] | None]
    """Token offsets into the response at which the steps end."""
    errors: list[ItemError | None]
    model: str
    reward: Reward
    usage: Usage


@router.post("/get_reward")
async def get_reward(request: GetRewardRequest, ask: Asked) -> GetRewardReply:
    facts = ask.model(request.model)
    aggregation = request.aggregation or facts.aggregation
    scored = await ask.score(facts, request.conversations())
    items = [item for (item,) in scored.items]
    rewards = [None if item.failure else item.rewards[aggregation] for item in items]
    return GetRewardReply(
        rewards=rewards,
        scores=[None if reward is None else sigmoid(reward) for reward in rewards],
        extra_logs={
            "num_steps": [None if item.failure else float(len(item.steps)) for item in items],
            "lowest_step_reward": [None if item.failure else min(item.step_rewards) for item in items],
        },
        step_rewards=[None if item.failure else item.step_rewards for item in items],
        step_ends=[None if item.failure else item.step_ends for item in items],
        errors=[error_of(item) for item in items],
        model=facts.name,
        reward=Reward.of(facts, aggregation),
        usage=Usage.of(scored.cost),
    )
