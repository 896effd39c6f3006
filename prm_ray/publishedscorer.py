"""`PublishedScorer`: (problem, responses) -> a logit a step, from a reward model that others published. No Ray.

    scorer = PublishedScorer.from_pretrained("Qwen/Qwen2.5-Math-PRM-7B", style="qwen_prm")
    for response in scorer.score("12 + 45 - 8", ["12 + 45 = 57\\n\\n57 - 8 = 49\\n\\nAnswer: 49"]):
        print(response.steps, response.step_rewards, response.rewards["min"])

Baselines of an implicit PRM. sigmoid(logit) is a PRM's own step reward, its probability that the step is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from prm_ray.core.forward import Reading, response_values
from prm_ray.core.heads import LabelTokens, score_head
from prm_ray.core.packing import PromptGroup
from prm_ray.core.steps import split_steps
from prm_ray.errors import UserError
from prm_ray.models import load_config, load_model, load_tokenizer, resolve_model
from prm_ray.publishedformats import Format, Question, label_tokens, math_shepherd, qwen_prm, rlhflow, value_head
from prm_ray.rewardmodels import load_with_process_head, load_with_value_head
from prm_ray.scorer import group_values
from prm_ray.settings import PublishedStyle
from prm_ray.texts import (
    ResponseError,
    ScoredResponse,
    all_rewards,
    check_numbers,
    check_scoring,
    longest_text,
    text_step_ends,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Asked:
    """N responses to one problem in the format of a published model."""

    steps: list[list[str]]
    step_ends: list[list[int]]
    questions: list[list[Question]]

    prompt_tokens: ClassVar[tuple[int, ...]] = ()
    """Prompt and response are one text."""

    @property
    def num_tokens(self) -> int:
        """At most: texts that begin alike are computed once."""
        return sum(len(question.tokens) for of_response in self.questions for question in of_response)


class PublishedScorer:
    """A published reward model, asked in its own format; all texts of all responses in packed passes."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        reading: Reading,
        ask: Format,
        *,
        step_rule: str = "blank_line",
        token_budget: int = 8192,
    ):
        check_numbers(token_budget=token_budget)
        check_scoring(model, step_rule)
        self.model, self.tokenizer, self.step_rule, self.token_budget = model, tokenizer, step_rule, token_budget
        self._reading, self._ask = reading, ask
        self._context = longest_text(model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        style: PublishedStyle,
        dtype: str = "auto",
        token_budget: int = 8192,
        step_rule: str = "blank_line",
        chat_template: Path | None = None,
    ) -> PublishedScorer:
        """Load a model folder or hub id; `style` is how it is asked, see `publishedformats.py`. No code of it is run.

        Raises `UserError` for a model that is not of that style: a token or a head it lacks, no chat template.
        """
        path = resolve_model(str(folder))
        tokenizer, ask = load_format(path, style, chat_template)
        head: Any = score_head
        if style == "value_head":
            model = load_with_value_head(path, dtype, seed=None)
        elif style == "qwen_prm":
            model = load_with_process_head(path, dtype)
        else:
            model = load_model(path, dtype)
            head = LabelTokens(*label_tokens(tokenizer, behind_space=style == "math_shepherd"))
        reading = partial(response_values, head=head)
        return cls(model, tokenizer, reading, ask, step_rule=step_rule, token_budget=token_budget)

    def score(self, problem: str, responses: Sequence[str | Sequence[str]]) -> list[ScoredResponse]:
        """Score responses to one problem, in their order; each a text, cut by `step_rule`, or a list of its S steps.

        `step_ends` are counted in the tokens of the response's text alone, not of what the model reads around it.
        Raises `UserError` for an empty step, or a text longer than the model reads.
        """
        (scored,) = self.score_prepared([self.prepare(problem, responses)])
        return scored

    def prepare(self, problem: str, responses: Sequence[str | Sequence[str]]) -> Asked:
        """The part of `score` that needs no model: encodes and checks.

        Raises `UserError` for a problem that is none, `ResponseError` for the first response that cannot be scored.
        """
        if not isinstance(problem, str):
            raise UserError(f"problem {repr(problem)[:200]} must be a text: a published model has a prompt of its own")
        if isinstance(responses, str):
            raise UserError(f"responses is one text, {responses[:40]!r}; it must be a list of texts")
        cuts = [self._cut(number, response) for number, response in enumerate(responses)]
        questions = [self._questions_of(number, problem, steps) for number, steps in enumerate(cuts)]
        return Asked(cuts, [text_step_ends(self.tokenizer, steps) for steps in cuts], questions)

    def score_prepared(self, prepared: Sequence[Asked]) -> list[list[ScoredResponse]]:
        """Score candidates of many problems in packed passes over all of them."""
        logits = iter(self.step_logits([questions for asked in prepared for questions in asked.questions]))
        return [
            [
                _scored(steps, step_ends, next(logits))
                for steps, step_ends in zip(asked.steps, asked.step_ends, strict=True)
            ]
            for asked in prepared
        ]

    def questions(self, problem: str, steps: Sequence[str]) -> list[Question]:
        """The texts that ask for the S rewards of a response. Raises `ResponseError` for one that cannot be asked."""
        if not steps:
            raise ResponseError("a response is empty; it must have at least one step", "empty_response")
        for number, step in enumerate(steps, start=1):
            if not step.strip():
                raise ResponseError(f"step {number} of {len(steps)} is empty; it must have at least one character")
        questions = self._ask(problem, steps)
        longest = max(len(each.tokens) for each in questions)
        if self._context is not None and longest > self._context:
            raise ResponseError(
                f"prompt and response have {longest} tokens, the model reads {self._context}", "too_long"
            )
        return questions

    def step_logits(self, asked: Sequence[Sequence[Question]]) -> list[list[float]]:
        """The S logits of each response, from its questions."""
        # A text's first token has none before it, and nothing is read at it: it is the prompt, all the rest response.
        groups = [PromptGroup(each.tokens[:1], [each.tokens[1:]]) for questions in asked for each in questions]
        values = iter(group_values(self.model, groups, self.token_budget, self._reading))
        return [
            [value for each in questions for value in next(values)[0][[place - 1 for place in each.places]].tolist()]
            for questions in asked
        ]

    def _cut(self, number: int, response: str | Sequence[str]) -> list[str]:
        if isinstance(response, str):
            return split_steps(response, self.step_rule)
        if not all(isinstance(step, str) for step in response):
            raise ResponseError(f"response {number} is no text: a published model has tokens of its own")
        return _closed(response)

    def _questions_of(self, number: int, problem: str, steps: Sequence[str]) -> list[Question]:
        try:
            return self.questions(problem, steps)
        except ResponseError as error:
            raise ResponseError(f"response {number}: {error}", error.kind) from None


def load_format(
    folder: str | Path, style: PublishedStyle, chat_template: Path | None = None
) -> tuple[PreTrainedTokenizerFast, Format]:
    """A model's tokenizer and the format in which it is asked. Raises `UserError` if the tokenizer lacks its words."""
    if style not in (known := get_args(PublishedStyle)):
        raise UserError(f"style {style!r} must be one of {', '.join(known)}")
    path = resolve_model(str(folder))
    tokenizer = load_tokenizer(path, chat_template, needs_chat=style != "math_shepherd")
    if style == "value_head":
        return tokenizer, value_head(tokenizer, _pad_token(path))
    formats = {"math_shepherd": math_shepherd, "rlhflow": rlhflow, "qwen_prm": qwen_prm}
    return tokenizer, formats[style](tokenizer)


def _closed(steps: Sequence[str]) -> list[str]:
    """The steps so that they join to a text: a blank line behind each but the last, unless white space is there."""
    parted = [step if step[-1:].isspace() else f"{step}\n\n" for step in steps[:-1]]
    return [*parted, *steps[-1:]]


def _scored(steps: list[str], step_ends: list[int], logits_S: list[float]) -> ScoredResponse:
    return ScoredResponse("".join(steps), steps, step_ends, [], logits_S, all_rewards(logits_S, step_ends[-1]), [])


def _pad_token(path: str) -> int | None:
    """As the files have it: a loaded model may have been given one."""
    return load_config(path).get_text_config().pad_token_id
