"""Texts in, texts with rewards out: what all scorers check, encode, cut into steps and hand back."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from prm_ray.core.forward import causal_lm, length_limits
from prm_ray.core.packing import PromptGroup
from prm_ray.core.rewards import AGGREGATIONS, aggregate
from prm_ray.core.steps import check_rule, step_token_ends
from prm_ray.core.support import check_model
from prm_ray.errors import UserError
from prm_ray.models import build_messages, decode, encode_prompt, encode_response, prompt_text, token_char_ends
from prm_ray.settings import PromptSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class ScoredResponse:
    """One scored response: T tokens, S steps."""

    text: str
    steps: list[str]  # S texts that join to `text`
    step_ends: list[int]  # S token offsets into the response
    token_rewards: list[float]  # T numbers; none of a head
    step_rewards: list[float]  # S numbers that add up to rewards["sum"]; of a head its logits at the steps' ends
    rewards: dict[str, float]  # one number an aggregation
    tokens: list[int]  # T ids; none of a published model, which reads the response inside a text of its own
    policy_logprobs: list[float] = field(default_factory=list)  # log pi, T numbers; none of a head
    ref_logprobs: list[float] = field(default_factory=list)  # log pi_ref, T numbers; none without a reference


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


Problem = str | list[dict[str, str]] | list[int]
"""The text of a problem, put into the prompt of the model; the messages of a chat; or a prompt's token ids."""
Response = str | Sequence[int]
"""A text, closed by the end-of-turn token when it is encoded; or token ids, taken as they are."""


class ResponseError(UserError):
    """A response that cannot be scored; `kind` is `empty_response`, `too_long` or `invalid_response`."""

    def __init__(self, message: str, kind: str = "invalid_response", fits: list[int] | None = None):
        super().__init__(message)
        self.kind = kind
        self.fits = fits or []
        """Of one that is too long, the first tokens, as many as the model can read behind the prompt."""


@dataclass(frozen=True)
class Candidates:
    """N responses to one problem as a model reads them."""

    group: PromptGroup
    texts: list[str]
    steps: list[list[str]]  # S texts a response, which join to its text
    step_ends: list[list[int]]  # S token offsets a response

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        return tuple(self.group.prompt)

    @property
    def num_tokens(self) -> int:
        """The prompt once, and all responses."""
        return len(self.group.prompt) + sum(map(len, self.group.responses))


def encode_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: PromptSection,
    step_rule: str,
    problem: Problem,
    responses: Sequence[Response],
) -> Candidates:
    """Raises `UserError` for a problem that is none, `ResponseError` for the first response that cannot be scored."""
    if isinstance(responses, str):
        raise UserError(f"responses is one text, {responses[:40]!r}; it must be a list of texts")
    prompt_tokens = encode_problem(tokenizer, prompt, problem)
    limit, vocabulary = longest_text(model), model.get_input_embeddings().weight.shape[0]
    _check_tokens("problem", prompt_tokens, vocabulary, UserError)
    tokens = [
        _encode_response(tokenizer, f"response {number}", response, vocabulary)
        for number, response in enumerate(responses)
    ]
    for number, response in enumerate(tokens):
        if limit is not None and len(prompt_tokens) + len(response) > limit:
            raise ResponseError(
                f"response {number} has {len(response)} tokens behind a prompt of {len(prompt_tokens)}; "
                f"together they must be at most the model's {limit}",
                "too_long",
                response[: max(0, limit - len(prompt_tokens))],
            )
    cuts = [cut_steps(tokenizer, each, step_rule) for each in tokens]
    texts = [
        response if isinstance(response, str) else "".join(steps)
        for response, (steps, _) in zip(responses, cuts, strict=True)
    ]
    return Candidates(
        PromptGroup(prompt_tokens, tokens), texts, [steps for steps, _ in cuts], [ends for _, ends in cuts]
    )


def encode_problem(tokenizer: PreTrainedTokenizerFast, prompt: PromptSection, problem: Problem) -> list[int]:
    """Token ids of a problem. Raises `UserError` for what is none, or what the chat template refuses."""
    tokens, messages = _tokens_or_messages(prompt, problem)
    return tokens or encode_prompt(tokenizer, messages)


def problem_text(tokenizer: PreTrainedTokenizerFast, prompt: PromptSection, problem: Problem) -> str | list[int]:
    """The text that `encode_problem` tokenizes, or the token ids that it takes as they are. Raises as it does."""
    tokens, messages = _tokens_or_messages(prompt, problem)
    return tokens or prompt_text(tokenizer, messages)


def _tokens_or_messages(prompt: PromptSection, problem: Problem) -> tuple[list[int], list[dict[str, str]]]:
    if isinstance(problem, str):
        return [], build_messages(prompt, problem)
    if isinstance(problem, list) and problem and all(type(token) is int for token in problem):
        return [token for token in problem if isinstance(token, int)], []
    if isinstance(problem, list) and problem and all(map(_is_message, problem)):
        return [], [message for message in problem if isinstance(message, dict)]
    raise UserError(
        f"problem {repr(problem)[:200]} must be a text, a list of messages (with the texts role and content) "
        "or a list of token ids"
    )


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _encode_response(tokenizer: PreTrainedTokenizerFast, name: str, response: Response, vocabulary: int) -> list[int]:
    if not isinstance(response, str | Sequence):
        raise ResponseError(f"{name} is {response!r}; it must be a text or a list of token ids", "invalid_response")
    if not len(response):
        raise ResponseError(f"{name} is empty; a response must have at least one token", "empty_response")
    if isinstance(response, str):
        return encode_response(tokenizer, response)
    _check_tokens(name, response, vocabulary, ResponseError)
    return list(response)


def _check_tokens(name: str, tokens: Sequence[int], vocabulary: int, error: Callable[[str], Exception]) -> None:
    for token in tokens:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise error(f"{name} has the token id {token!r}; ids must be whole numbers from 0 to {vocabulary - 1}")


def longest_text(model: PreTrainedModel) -> int | None:
    """Most tokens that the model was made to read and that can be scored exactly; None if its config has no limit."""
    config = causal_lm(model).config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), *length_limits(config).values()]
    return min((limit for limit in limits if limit is not None), default=None)


def cut_steps(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int], rule: str) -> tuple[list[str], list[int]]:
    """Texts of the S steps of a response, and the token offsets of their ends."""
    char_ends, decoded = token_char_ends(tokenizer, tokens), decode(tokenizer, tokens)
    ends = step_token_ends(decoded, char_ends, rule)
    char_cuts = [0, *(char_ends[end - 1] for end in ends[:-1]), len(decoded)]
    return [decoded[start:end] for start, end in pairwise(char_cuts)], ends


def text_step_ends(tokenizer: PreTrainedTokenizerFast, steps: Sequence[str]) -> list[int]:
    """Token offsets into the response's text at which its S steps end; never falling, the last is all of its tokens.

    A token that lies in two steps belongs to the first of them.
    """
    encoded: Any = tokenizer("".join(steps), add_special_tokens=False, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    found = []
    for char_end in accumulate(map(len, steps[:-1])):
        # Some tokenizers leave white space out of a token's span, so the one before may end, and the next begin, apart
        # from the step's end.
        num_tokens = bisect_right(ends, char_end)
        found.append(num_tokens + (num_tokens < len(spans) and starts[num_tokens] < char_end))
    return [*found, len(spans)]


def scored_responses(
    candidates: Candidates,
    step_rewards: Sequence[Sequence[float]],
    token_rewards: Sequence[Sequence[float]] | None = None,
) -> list[ScoredResponse]:
    """What goes back to the caller: step rewards [S] of each response, and token rewards [T] where there are any."""
    found = []
    for number, tokens in enumerate(candidates.group.responses):
        rewards_S, rewards_T = list(step_rewards[number]), list(token_rewards[number]) if token_rewards else []
        text, steps, ends = candidates.texts[number], candidates.steps[number], candidates.step_ends[number]
        rewards = all_rewards(rewards_S, len(tokens))
        found.append(ScoredResponse(text, steps, ends, rewards_T, rewards_S, rewards, list(tokens)))
    return found


def all_rewards(step_rewards_S: Sequence[float], num_tokens: int) -> dict[str, float]:
    return {how: aggregate(step_rewards_S, how, num_tokens) for how in AGGREGATIONS}
