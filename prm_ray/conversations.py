"""A whole conversation, as trainers and engines hand it around -> the prompt and the response in it, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prm_ray.texts import ResponseError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def split_conversation(
    tokenizer: PreTrainedTokenizerFast, whole: str | Sequence[int], prompt: str | None = None
) -> tuple[list[int], list[list[int]]]:
    """(prompt tokens, [response tokens]) of a text in the tokenizer's chat template, special tokens kept, or its ids.

    The text is encoded in one piece. The prompt is the text given, else all up to the last header of an assistant's
    turn. Raises `ResponseError` if there is no such header, the text does not begin with its prompt, or one is empty.
    """
    tokens = tokenizer(whole, add_special_tokens=False).input_ids if isinstance(whole, str) else list(whole)
    if prompt is None:
        end = _end_of_last(tokens, assistant_header(tokenizer))
        if end is None:
            raise ResponseError("the input has no assistant turn of this model's chat template", "invalid_response")
    else:
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        if tokens[: len(before)] != before:
            raise ResponseError("the input does not begin with the tokens of its prompt", "invalid_response")
        end = len(before)
    if end in (0, len(tokens)):
        raise ResponseError(f"the {'response' if end else 'prompt'} of the input is empty", "empty_response")
    return tokens[:end], [tokens[end:]]


def assistant_header(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the chat template puts before an assistant's turn."""
    chat = [{"role": "user", "content": "1"}]
    with_header, without = (_templated(tokenizer, chat, follows) for follows in (True, False))
    return with_header[len(without) :]


def _templated(tokenizer: PreTrainedTokenizerFast, chat: list[dict[str, str]], answer_follows: bool) -> list[int]:
    ids: Any = tokenizer.apply_chat_template(
        chat, add_generation_prompt=answer_follows, tokenize=True, return_dict=False
    )
    return list(ids)


def _end_of_last(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Where the last occurrence of `part` ends."""
    length = len(part)
    starts = range(len(tokens) - length, -1, -1) if length else ()
    return next((start + length for start in starts if list(tokens[start : start + length]) == list(part)), None)
