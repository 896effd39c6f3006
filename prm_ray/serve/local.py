"""A backend of replicas in this very process: the server without Ray, for programs and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prm_ray.scoring.asks import Ask, Conversation, ModelFacts, Options, Refusal, RefusedError, Scored
from prm_ray.scoring.replica import Replica


class LocalBackend:
    def __init__(self, models: Mapping[str, ModelFacts], replicas: Mapping[str, Replica]):
        self.models = dict(models)
        self._replicas = replicas

    async def score(self, model: str, asks: Sequence[Ask | Conversation], options: Options) -> Scored:
        outcome = await self._replicas[model].score(asks, options)
        if isinstance(outcome, Refusal):
            raise RefusedError(outcome)
        return outcome

    async def num_ready(self) -> dict[str, int]:
        return dict.fromkeys(self._replicas, 1)
