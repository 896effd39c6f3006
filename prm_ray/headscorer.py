"""`HeadScorer`: (problem, responses) -> a logit at the end of each step, from a reward model with a head. No Ray.

    scorer = HeadScorer.from_pretrained("runs/value_head/checkpoint")
    for response in scorer.score("12 + 45 - 8", ["12 + 45 = 57\\n57 - 8 = 49\\nAnswer: 49"]):
        print(response.steps, response.step_rewards, response.rewards["last"])

The baselines of an implicit PRM: an outcome reward model (its reward is `last`) or one trained on step labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prm_ray.core.forward import Reading
from prm_ray.core.packing import PromptGroup
from prm_ray.errors import UserError
from prm_ray.models import read_prm_json, resolve_model
from prm_ray.rewardmodels import HEADS, load_reward_model
from prm_ray.scorer import group_values
from prm_ray.settings import PromptSection
from prm_ray.texts import (
    Candidates,
    Problem,
    Response,
    ScoredResponse,
    check_numbers,
    check_scoring,
    encode_candidates,
    longest_text,
    scored_responses,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class HeadScorer:
    """A reward model whose head is read at the end of each step; all steps of all responses in one packed pass."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        reading: Reading,
        *,
        step_rule: str = "blank_line",
        prompt: PromptSection | None = None,
        token_budget: int = 8192,
    ):
        check_numbers(token_budget=token_budget)
        check_scoring(model, step_rule)
        self.model, self.tokenizer, self.reading = model, tokenizer, reading
        self.step_rule, self.token_budget = step_rule, token_budget
        self.prompt = prompt or PromptSection()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: str = "auto", token_budget: int = 8192, trust_remote_code: bool = False
    ) -> HeadScorer:
        """Load a checkpoint of this project. Raises `UserError` if it has no head."""
        path = resolve_model(str(folder))
        facts = read_prm_json(path)
        if facts.get("reward") not in HEADS:
            raise UserError(f"{path!r} is an implicit PRM, which has no head: load it with Scorer.from_pretrained")
        model, tokenizer, reading = load_reward_model(path, facts, dtype, trust_remote_code)
        prompt = PromptSection.model_validate(facts["prompt"])
        return cls(model, tokenizer, reading, step_rule=facts["step_rule"], prompt=prompt, token_budget=token_budget)

    @property
    def longest(self) -> int | None:
        """Tokens of prompt and response that it reads together; None = no limit."""
        return longest_text(self.model)

    def score(self, problem: Problem, responses: Sequence[Response]) -> list[ScoredResponse]:
        """Score responses to one problem, in their order. Raises `UserError` as `Scorer.score` does."""
        (scored,) = self.score_prepared([self.prepare(problem, responses)])
        return scored

    def prepare(self, problem: Problem, responses: Sequence[Response]) -> Candidates:
        """The part of `score` that needs no model: encodes and checks. Raises `UserError` as `score` does."""
        return encode_candidates(self.model, self.tokenizer, self.prompt, self.step_rule, problem, responses)

    def score_prepared(self, prepared: Sequence[Candidates]) -> list[list[ScoredResponse]]:
        """Score candidates of many problems in packed passes over all of them."""
        logits = self.step_logits([each.group for each in prepared], [each.step_ends for each in prepared])
        return [scored_responses(*each) for each in zip(prepared, logits, strict=True)]

    def step_logits(
        self, groups: Sequence[PromptGroup], step_ends: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        """The logit at the end of each step [S] of every response of every group."""
        values = group_values(self.model, groups, self.token_budget, self.reading)
        return [
            [values_T[[end - 1 for end in ends]].tolist() for values_T, ends in zip(of_group, ends_of, strict=True)]
            for of_group, ends_of in zip(values, step_ends, strict=True)
        ]
