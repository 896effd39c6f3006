"""Given solutions as a reward model reads them: their tokens, where the given steps end, and rewards of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.core.rewards import step_rewards
from prm_ray.core.steps import join_steps, token_ends_at
from prm_ray.errors import UserError
from prm_ray.headscorer import HeadScorer
from prm_ray.models import (
    build_messages,
    context_length,
    decode,
    encode_prompt,
    encode_response,
    read_prm_json,
    token_char_ends,
)
from prm_ray.publishedscorer import PublishedScorer
from prm_ray.rewardmodels import HEADS
from prm_ray.scorer import Scorer
from prm_ray.stages.steprewards import RewardsOfGroups, add_published_rewards, add_step_rewards
from prm_ray.tables import StageFolder
from prm_ray.texts import text_step_ends


@dataclass(frozen=True)
class Solution:
    """A row of ProcessBench."""

    subset: str
    id: str
    problem: str
    steps: list[str]
    label: int
    """0-based first wrong step; -1 = none is wrong."""


class SolutionReader(Protocol):
    def encoded(self, solution: Solution) -> dict[str, Any]:
        """`response_tokens` and `step_ends` of a solution of one step or more, or `error`."""
        ...

    def add_rewards(self, rows: list[dict[str, Any]], solutions: Sequence[Solution]) -> None:
        """Set `step_rewards`, or `error`, of the encoded rows of these solutions."""
        ...


def open_reader(config: RunConfig) -> SolutionReader:
    """The reward model of a run, trained or published."""
    return _Trained(config) if config.score.model is None else _Published(config)


class _Trained:
    """A model of this project: in the prompt it was trained with."""

    def __init__(self, config: RunConfig):
        checkpoint = str(StageFolder(config.run.dir, "train").path)
        options: dict[str, Any] = {"dtype": config.model.dtype, "token_budget": config.processbench.token_budget}
        options |= {"trust_remote_code": config.model.trust_remote_code}
        self._scorer: Scorer | HeadScorer
        self._rewards: RewardsOfGroups
        if read_prm_json(checkpoint).get("reward") in HEADS:
            self._scorer = HeadScorer.from_pretrained(checkpoint, **options)
            self._rewards = self._scorer.step_logits
        else:
            options |= {"with_reference": config.score.with_reference, "beta_schedule": config.score.beta_schedule}
            self._scorer = Scorer.from_pretrained(checkpoint, **options)
            self._rewards = partial(_log_ratios, self._scorer)
        self._context = context_length(checkpoint, config.model.trust_remote_code)

    def encoded(self, solution: Solution) -> dict[str, Any]:
        tokenizer = self._scorer.tokenizer
        text, char_ends = join_steps(solution.steps, self._scorer.step_rule)
        try:
            prompt_tokens = encode_prompt(tokenizer, build_messages(self._scorer.prompt, solution.problem))
        except UserError as error:
            return {"error": f"prompt_refused: {error}"}
        tokens = encode_response(tokenizer, text)
        length = len(prompt_tokens) + len(tokens)
        if self._context is not None and length > self._context:
            return {"error": f"too_long: prompt and steps have {length} tokens, the model reads {self._context}"}
        if decode(tokenizer, tokens) != text:
            return {"error": "not_lossless: the tokenizer changes the text, so step ends would be guesses"}
        ends = token_ends_at(char_ends, token_char_ends(tokenizer, tokens))
        return {"prompt_tokens": prompt_tokens} | _at(ends, tokens)

    def add_rewards(self, rows: list[dict[str, Any]], solutions: Sequence[Solution]) -> None:
        add_step_rewards(rows, self._rewards)


class _Published:
    """A model of others, in its own format. Tokens and step ends are of the solution's text alone, to count with."""

    def __init__(self, config: RunConfig):
        model, style = config.score.model, config.score.style
        assert model is not None and style is not None
        self._step_rule = config.reference.step_rule
        self._scorer = PublishedScorer.from_pretrained(
            model, style=style, dtype=config.model.dtype, token_budget=config.processbench.token_budget
        )

    def encoded(self, solution: Solution) -> dict[str, Any]:
        text, char_ends = join_steps(solution.steps, self._step_rule)
        steps = [text[start:end] for start, end in pairwise([0, *char_ends])]
        tokens: Any = self._scorer.tokenizer(text, add_special_tokens=False).input_ids
        return _at(text_step_ends(self._scorer.tokenizer, steps), tokens)

    def add_rewards(self, rows: list[dict[str, Any]], solutions: Sequence[Solution]) -> None:
        add_published_rewards(rows, [(each.problem, each.steps) for each in solutions], self._scorer)


def _log_ratios(
    scorer: Scorer, groups: Sequence[PromptGroup], ends: Sequence[Sequence[Sequence[int]]]
) -> list[list[list[float]]]:
    return [
        [step_rewards(token_rewards_T, ends_S) for token_rewards_T, ends_S in zip(of_group, ends_of, strict=True)]
        for of_group, ends_of in zip(scorer.score_tokens(groups), ends, strict=True)
    ]


def _at(step_ends: list[int], tokens: list[int]) -> dict[str, Any]:
    """The last step ends with the last token, also where that is no text."""
    return {"response_tokens": tokens, "step_ends": [*step_ends[:-1], len(tokens)]}
