"""A whole conversation, as trainers and engines hand it around -> the prompt and the response in it, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prm_ray.texts import ResponseError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Text = TypeVar("Text", str, list[int])


def split_conversation(
    tokenizer: PreTrainedTokenizerFast, whole: str | Sequence[int], prompt: str | None = None
) -> tuple[list[int], list[list[int]]]:
    """(prompt tokens, [response tokens]) of a text in the tokenizer's chat template, special tokens kept, or its ids.

    The prompt is the text given, else all up to the last header of an assistant's turn. Raises `ResponseError` if
    there is no such header, the text does not begin with its prompt, or one of the two is empty.
    """
    if isinstance(whole, str):
        before, after = _split_text(tokenizer, whole, prompt)
    else:
        before, after = _cut(list(whole), _end_of_last(whole, assistant_header(tokenizer)))
    if not before or not after:
        raise ResponseError(f"the {'response' if before else 'prompt'} of the input is empty", "empty_response")
    return before, [after]


def _split_text(tokenizer: PreTrainedTokenizerFast, whole: str, prompt: str | None) -> tuple[list[int], list[int]]:
    if prompt is None:
        header = _added_header(tokenizer, tokenize=False)
        before, _ = _cut(whole, whole.rfind(header) + len(header) if header and header in whole else None)
    elif whole.startswith(prompt):
        before = prompt
    else:
        raise ResponseError("the input does not begin with its prompt", "invalid_response")
    prompt_tokens, tokens = (tokenizer(text, add_special_tokens=False).input_ids for text in (before, whole))
    if tokens[: len(prompt_tokens)] == prompt_tokens:
        return _cut(tokens, len(prompt_tokens))
    # A response that begins with a line break may merge with the one that ends its prompt. The policy that sampled it
    # had the prompt's own tokens before it.
    return prompt_tokens, tokenizer(whole[len(before) :], add_special_tokens=False).input_ids


def assistant_header(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the chat template puts before an assistant's turn."""
    return list(_added_header(tokenizer, tokenize=True))


def _added_header(tokenizer: PreTrainedTokenizerFast, tokenize: bool) -> Any:
    """The end of a chat that an answer follows, as text or as token ids."""
    chat = [{"role": "user", "content": "1"}]
    options: dict[str, Any] = {"tokenize": tokenize, "return_dict": False}
    with_header, without = (
        tokenizer.apply_chat_template(chat, add_generation_prompt=follows, **options) for follows in (True, False)
    )
    return with_header[len(without) :]


def _cut(whole: Text, end: int | None) -> tuple[Text, Text]:
    if end is None:
        raise ResponseError("the input has no assistant turn of this model's chat template", "invalid_response")
    return whole[:end], whole[end:]


def _end_of_last(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Where the last occurrence of `part` ends."""
    length = len(part)
    starts = range(len(tokens) - length, -1, -1) if length else ()
    return next((start + length for start in starts if list(tokens[start : start + length]) == list(part)), None)
