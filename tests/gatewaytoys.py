"""Generators for searches in the gateway: one that writes digits, one at a URL, and a tiny engine in this process."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

from prm_ray.scoring.asks import Refusal, RefusedError
from prm_ray.search.candidate import Candidate, Draw, Proposal
from prm_ray.serve.generation import ChatModel
from prm_ray.serve.generator import Candidate as Answer
from prm_ray.serve.generator import Generated
from prm_ray.serve.steps import Continuing, Opening, StepByStep
from prm_ray.stages.sampling import Decoding, SamplerOptions
from prm_ray.stages.threads import Threads

STEPS = 3


class ToySteps:
    """Writes a digit a line, three lines a response, and notes what it was asked for."""

    def __init__(self, tokenizer: Any, max_tokens: int = 50):
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self.starts: list[Candidate] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokens: dict[str, tuple[int, ...]] = {}
        self.num_sampled = 0
        self.before: Callable[[Candidate, Draw], Awaitable[None]] | None = None
        """Runs before each draw."""
        self.num_steps = STEPS

    async def begin(self, body: dict[str, Any], step_rule: str) -> Continuing:
        assert step_rule == "newline"
        self.bodies.append(body)
        return StepByStep(
            Opening((5, 6, 7), Decoding(1, 1.0, 1.0), self._max_tokens, 0, "toy"), step_rule, self._proceed
        )

    async def _proceed(self, opening: Opening, step_rule: str, start: Candidate, draw: Draw) -> Proposal:
        self.starts.append(start)
        if self.before is not None:
            await self.before(start, draw)
        rng, text, begun = random.Random(draw.seed), start.text, len(start.text)
        while text.count("\n") < (self.num_steps if draw.whole else start.text.count("\n") + 1):
            text += f"{rng.randrange(10)}\n"
        tokens = tuple(self._tokenizer(text[begun:], add_special_tokens=False).input_ids)
        self.tokens[text] = (*start.tokens, *tokens)
        self.num_sampled += len(tokens) + 1
        ends = text.count("\n") == self.num_steps
        return Proposal(tokens, text, "stop" if ends else None, len(tokens) + 1)


class Whole:
    """A generator that gives whole responses only, as one at a URL."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        self.bodies.append(body | {"n": count})
        texts = [f"{len(self.bodies)}\n{number}" for number in range(count)]
        return Generated([Answer(text, "stop") for text in texts], "whole", 5, 4 * count)


def tiny_options(folder: str) -> SamplerOptions:
    return SamplerOptions(
        "transformers", folder, "float32", False, Decoding(1, 1.0, 1.0), 40, 512, 0, Threads(number=1), 0, {}
    )


class TinyEngine:
    """The application's own generator in this process."""

    def __init__(self, folder: str):
        self._model = ChatModel(tiny_options(folder), "tiny", None)
        self.draws: list[tuple[Opening, Candidate, Draw, Proposal]] = []

    async def begin(self, body: dict[str, Any], step_rule: str) -> Continuing:
        opening = await self._model.begin(body)
        if isinstance(opening, Refusal):
            raise RefusedError(opening)
        return StepByStep(opening, step_rule, self._proceed)

    async def _proceed(self, opening: Opening, step_rule: str, start: Candidate, draw: Draw) -> Proposal:
        proposal = await self._model.continue_response(opening, step_rule, start, draw)
        self.draws.append((opening, start, draw, proposal))
        return proposal
