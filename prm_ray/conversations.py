"""A whole conversation, as trainers and engines hand it around -> the prompt and the response in it, as token ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prm_ray.texts import ResponseError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def split_conversation(
    tokenizer: PreTrainedTokenizerFast, whole: str | Sequence[int], prompt: str | None = None
) -> tuple[list[int], list[list[int]]]:
    """(prompt tokens, [response tokens]) of a text in the tokenizer's chat template, special tokens kept, or its ids.

    The prompt is the text given, else all up to the last header of an assistant's turn. Raises `ResponseError` if
    there is no such header, the text does not begin with its prompt, or one of the two is empty.
    """
    end = prompt_end(tokenizer, whole, prompt)
    before, after = (
        _tokenized(tokenizer, whole, end) if isinstance(whole, str) else (list(whole[:end]), list(whole[end:]))
    )
    if not before or not after:
        raise ResponseError(f"the {'response' if before else 'prompt'} of the input is empty", "empty_response")
    return before, [after]


def prompt_end(tokenizer: PreTrainedTokenizerFast, whole: str | Sequence[int], prompt: str | None = None) -> int:
    """Characters (or tokens) of a conversation that are its prompt. Nothing is tokenized. Raises `ResponseError`."""
    if not isinstance(whole, str):
        end = _end_of_last(whole, assistant_header(tokenizer))
    elif prompt is None:
        header = _added_header(tokenizer, tokenize=False)
        end = whole.rfind(header) + len(header) if header and header in whole else None
    elif whole.startswith(prompt):
        end = len(prompt)
    else:
        raise ResponseError("the input does not begin with its prompt", "invalid_response")
    if end is None:
        raise ResponseError("the input has no assistant turn of this model's chat template", "invalid_response")
    return end


def _tokenized(tokenizer: PreTrainedTokenizerFast, whole: str, end: int) -> tuple[list[int], list[int]]:
    prompt_tokens, tokens = (tokenizer(text, add_special_tokens=False).input_ids for text in (whole[:end], whole))
    if tokens[: len(prompt_tokens)] == prompt_tokens:
        return prompt_tokens, tokens[len(prompt_tokens) :]
    # A response that begins with a line break may merge with the one that ends its prompt. The policy that sampled it
    # had the prompt's own tokens before it.
    return prompt_tokens, tokenizer(whole[end:], add_special_tokens=False).input_ids


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


def _end_of_last(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Where the last occurrence of `part` ends. Found in bytes, for there may be millions of tokens."""
    if not part:
        return None
    whole, wanted = array("q", tokens), array("q", part).tobytes()
    size, data = whole.itemsize, whole.tobytes()
    at = data.rfind(wanted)
    while at > 0 and at % size:
        at = data.rfind(wanted, 0, at + len(wanted) - 1)
    return None if at < 0 else at // size + len(part)
