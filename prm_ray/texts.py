"""Texts in, texts with rewards out: what all scorers check, encode, cut into steps and hand back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from prm_ray.core.forward import causal_lm, length_limits
from prm_ray.core.packing import PromptGroup
from prm_ray.core.rewards import AGGREGATIONS, aggregate
from prm_ray.core.steps import check_rule, step_token_ends
from prm_ray.core.support import check_model
from prm_ray.errors import UserError
from prm_ray.models import build_messages, decode, encode_prompt, encode_response, token_char_ends
from prm_ray.settings import PromptSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class ScoredResponse:
    """One scored response: T tokens, S steps."""

    text: str
    steps: list[str]  # S texts that join to `text`
    step_ends: list[int]  # S token offsets
    token_rewards: list[float]  # T numbers; none of a head
    step_rewards: list[float]  # S numbers that add up to rewards["sum"]; of a head its logits at the steps' ends
    rewards: dict[str, float]  # one number an aggregation


def check_numbers(*, beta: float = 1.0, token_budget: int = 1, cache_tokens: int = 0) -> None:
    """Raises `UserError` naming the argument, its value and what it must be."""
    if not isinstance(beta, int | float) or not (math.isfinite(beta) and beta > 0):
        raise UserError(f"beta is {beta!r}; it must be a number above 0")
    if type(token_budget) is not int or token_budget < 1:
        raise UserError(f"token_budget is {token_budget!r}; it must be a whole number of at least 1")
    if type(cache_tokens) is not int or cache_tokens < 0:
        raise UserError(f"cache_tokens is {cache_tokens!r}; it must be 0 (no prefix cache) or a larger whole number")


def check_scoring(model: PreTrainedModel, step_rule: str) -> None:
    """Raises `UserError` for a model that cannot be packed, or an unknown step rule."""
    try:
        check_rule(step_rule)
        check_model(model)
    except ValueError as error:
        raise UserError(str(error)) from None


def encode_problem(
    tokenizer: PreTrainedTokenizerFast, prompt: PromptSection, problem: str | list[dict[str, str]]
) -> list[int]:
    """Token ids of a problem's text put into the prompt, or of the messages of a chat.

    Raises `UserError` for what is neither.
    """
    if isinstance(problem, str):
        return encode_prompt(tokenizer, build_messages(prompt, problem))
    if not isinstance(problem, list) or not problem or not all(map(_is_message, problem)):
        raise UserError(f"problem {problem!r} must be a text, or a list of messages with the texts role and content")
    return encode_prompt(tokenizer, problem)


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def encode_responses(tokenizer: PreTrainedTokenizerFast, responses: Sequence[str]) -> list[list[int]]:
    """Raises `UserError` for what is no list of texts, and for an empty response: it has no token to reward."""
    if isinstance(responses, str):
        raise UserError(f"responses is one text, {responses[:40]!r}; it must be a list of texts")
    for number, text in enumerate(responses):
        if not isinstance(text, str):
            raise UserError(f"response {number} is {text!r}; it must be a text")
        if not text:
            raise UserError(f"response {number} is empty; a response must have at least one token")
    return [encode_response(tokenizer, text) for text in responses]


def longest_text(model: PreTrainedModel) -> int | None:
    """Most tokens that the model was made to read and that can be scored exactly; None if its config has no limit."""
    config = causal_lm(model).config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), *length_limits(config).values()]
    return min((limit for limit in limits if limit is not None), default=None)


def check_lengths(model: PreTrainedModel, group: PromptGroup) -> None:
    """Raises `UserError` for a response that, behind its prompt, is longer than `longest_text`."""
    limit = longest_text(model)
    for number, response in enumerate(group.responses):
        if limit is not None and len(group.prompt) + len(response) > limit:
            raise UserError(
                f"response {number} has {len(response)} tokens behind a prompt of {len(group.prompt)}; "
                f"together they must be at most the model's {limit}"
            )


def cut_steps(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int], rule: str) -> tuple[list[str], list[int]]:
    """Texts of the S steps of a response, and the token offsets of their ends."""
    char_ends, decoded = token_char_ends(tokenizer, tokens), decode(tokenizer, tokens)
    ends = step_token_ends(decoded, char_ends, rule)
    char_cuts = [0, *(char_ends[end - 1] for end in ends[:-1]), len(decoded)]
    return [decoded[start:end] for start, end in pairwise(char_cuts)], ends


def all_rewards(step_rewards_S: Sequence[float], num_tokens: int) -> dict[str, float]:
    return {how: aggregate(step_rewards_S, how, num_tokens) for how in AGGREGATIONS}
