"""What published reward models read: a problem and the S steps of a response as token ids, and where a reward is read.

Facts of the models' cards. A format gives texts of tokens, not prompts and responses, so that a text is tokenized in
one piece as its model was trained; texts that begin alike are still computed once (`core/packing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prm_ray.errors import UserError
from prm_ray.texts import ResponseError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHEPHERD_TAG, QWEN_TAG = "ки", "<extra_0>"
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
_RIGHT, _WRONG = "+", "-"


@dataclass(frozen=True)
class Question:
    """One text of T tokens that a reward model reads, and at which of them its rewards are read."""

    tokens: list[int]
    places: list[int]


Format = Callable[[str, Sequence[str]], list[Question]]
"""(problem, S steps) -> texts with S places in all, in the order of the steps. Raises `ResponseError` for what would be
read otherwise than the model learnt it."""


def value_head(tokenizer: PreTrainedTokenizerFast, pad_token: int | None) -> Format:
    """Outcome reward models for sequence classification, as Skywork/Skywork-Reward-Llama-3.1-8B: a chat of problem and
    response, one number at its last token.

    That is the token transformers reads: whatever the chat template closes a turn with, but no `pad_token` of the
    model's config. They give no number to a step, so each prefix is asked as if it were the response: the number of
    the last step is the model's own.
    """

    def ask(problem: str, steps: Sequence[str]) -> list[Question]:
        ends = range(1, len(steps) + 1)
        texts = ["".join(steps[:end]).rstrip() for end in ends[:-1]] + ["".join(steps)]
        return [whole(problem, text) for text in texts]

    def whole(problem: str, text: str) -> Question:
        tokens = _chat(tokenizer, [_turn("user", problem), _turn("assistant", text)])
        return Question(tokens, [max(place for place, token in enumerate(tokens) if token != pad_token)])

    return ask


def math_shepherd(tokenizer: PreTrainedTokenizerFast) -> Format:
    """peiyi9979/math-shepherd-mistral-7b-prm (arXiv 2312.08935): no chat; the problem, a space, and the steps, each
    closed by a space and the tag, a line each. The tag stays in the text, and the label is read at it."""
    tag = word_token(tokenizer, SHEPHERD_TAG, behind_space=True)

    def ask(problem: str, steps: Sequence[str]) -> list[Question]:
        text, ends = problem.strip(), []
        for number, step in enumerate(steps):
            text += f"{' ' if number == 0 else chr(10)}{step.strip()} {SHEPHERD_TAG}"
            ends.append(len(text))
        encoded = tokenizer(text, return_offsets_mapping=True)
        tokens: Any = encoded.input_ids
        spans = enumerate(encoded["offset_mapping"])
        place_of = {end: place for place, (start, end) in spans if tokens[place] == tag and start < end}
        if not place_of.keys() >= set(ends):
            raise ResponseError(f"a step of problem {problem[:40]!r} merges with the tag {SHEPHERD_TAG!r} behind it")
        return [Question(list(tokens), [place_of[end] for end in ends])]

    return ask


def rlhflow(tokenizer: PreTrainedTokenizerFast) -> Format:
    """RLHFlow/Llama3.1-8B-PRM-Deepseek-Data: a chat in which the user says the problem with the first step, then a step
    a turn, and the assistant answers each with '+'. The label is read where that '+' is predicted."""
    right = word_token(tokenizer, _RIGHT)

    def ask(problem: str, steps: Sequence[str]) -> list[Question]:
        turns: list[dict[str, str]] = []
        starts: list[list[int]] = []
        for number, step in enumerate(steps):
            said = f"{problem} {step.strip()}" if number == 0 else step.strip()
            turns.append(_turn("user", said))
            starts.append(_chat(tokenizer, turns, answer_follows=True))
            turns.append(_turn("assistant", _RIGHT))
        tokens = _chat(tokenizer, turns)
        if any(tokens[: len(start) + 1] != [*start, right] for start in starts):
            raise UserError(f"the chat template does not put the assistant's {_RIGHT!r} right behind its header")
        return [Question(tokens, [len(start) - 1 for start in starts])]

    return ask


def qwen_prm(tokenizer: PreTrainedTokenizerFast) -> Format:
    """Qwen/Qwen2.5-Math-PRM-7B (arXiv 2501.07301): a chat of a system message, the problem, and the steps, each closed
    by the token `<extra_0>`, at which two classes are read."""
    tag = word_token(tokenizer, QWEN_TAG)

    def ask(problem: str, steps: Sequence[str]) -> list[Question]:
        said = "".join(step.strip() + QWEN_TAG for step in steps)
        tokens = _chat(tokenizer, [_turn("system", QWEN_SYSTEM), _turn("user", problem), _turn("assistant", said)])
        places = [place for place, token in enumerate(tokens) if token == tag]
        if len(places) != len(steps):
            raise ResponseError(
                f"problem {problem[:40]!r} or a step of its response has the tag {QWEN_TAG!r} in its text"
            )
        return [Question(tokens, places)]

    return ask


def label_tokens(tokenizer: PreTrainedTokenizerFast, behind_space: bool) -> tuple[int, int]:
    """The words for right and for wrong."""
    return word_token(tokenizer, _RIGHT, behind_space), word_token(tokenizer, _WRONG, behind_space)


def word_token(tokenizer: PreTrainedTokenizerFast, word: str, behind_space: bool = False) -> int:
    """The token of a word at a text's start, or behind a space. Raises `UserError` if it is not one token."""
    # Tokenizers differ in what a space at a text's start becomes, so another word goes before it.
    token = tokenizer(f"a {word}" if behind_space else word, add_special_tokens=False).input_ids[-1]
    text = tokenizer.decode([token])
    if not isinstance(text, str) or text.strip() != word:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path!r} has no token {word!r}, which this style reads")
    return token


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _chat(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[dict[str, str]], answer_follows: bool = False
) -> list[int]:
    ids: Any = tokenizer.apply_chat_template(
        list(turns), add_generation_prompt=answer_follows, tokenize=True, return_dict=False
    )
    return list(ids)
