"""Requests with megabytes of text: refused, or cut, before the tokenizer has read much of them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from prm_ray.models import encode_prompt, load_tokenizer, token_char_ends
from prm_ray.scorer import Scorer
from prm_ray.scoring import replica as replicas
from prm_ray.scoring.asks import Ask, Conversation, Options, Refusal, Scored
from prm_ray.scoring.replica import Limits, Replica
from prm_ray.scoring.sizing import PIECE
from tests.serving import tiny_scorer

LONG = "1 + 2 = 3\n" * 300_000
LINES = "1 + 2 = 3\n3 + 4 = 7\n" * 5
LIMITS = Limits(max_tokens=4000, max_queued_tokens=100_000, token_budget=4000)
CHAT = [{"role": "user", "content": "1 + 2"}]
PROMPT = "<|user|>1 + 2<|end|><|assistant|>"
LONG_IDS = [5] * 3_000_000
ANY = Ask | Conversation


class Counting:
    """A tokenizer that counts the characters it is given to tokenize."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.num_characters = tokenizer, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.num_characters += len(text)
        return self._tokenizer(text, **options)

    def apply_chat_template(self, messages: Any, tokenize: bool = True, **options: Any) -> Any:
        if tokenize:
            self.num_characters += sum(len(message["content"]) for message in messages)
        return self._tokenizer.apply_chat_template(messages, tokenize=tokenize, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    made = tiny_scorer(tiny_model, other_tiny_model)
    made.tokenizer = Counting(made.tokenizer)  # type: ignore[assignment]
    return made


def score(scorer: Scorer, asks: Sequence[ANY], limits: Limits = LIMITS, **options: Any) -> Scored | Refusal:
    async def once() -> Scored | Refusal:
        replica = Replica(scorer, limits)
        try:
            return await replica.score(asks, Options(**options))
        finally:
            await replica.close()

    return asyncio.run(once())


def characters(scorer: Scorer) -> int:
    return scorer.tokenizer.num_characters


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(
    "asks",
    [
        [Ask(LONG, ["3"])],
        [Ask([{"role": "user", "content": LONG}], ["3", ""])],
        [Ask([{"role": "user", "content": "1 + 2"}] * 100_000, ["3"])],
        [Ask(LONG_IDS, ["3"])],
        [Ask("1 + 2", [LONG[:60_000]] * 256)],
        [Ask("1 + 2", [LONG_IDS] * 40)],
        [Ask(LONG[:20_000], ["3"])] * 256,
        [Conversation(PROMPT + LONG[:60_000])] * 256,
        [Conversation(LONG + PROMPT + "3")],
        [Conversation(LONG + "3", LONG)],
    ],
)
def test_what_is_certainly_too_much_is_refused_before_it_is_tokenized(
    scorer: Scorer, asks: list[ANY], truncate: bool
) -> None:
    refusal = score(scorer, asks, truncate=truncate)
    assert isinstance(refusal, Refusal) and (refusal.status, refusal.kind) == (413, "too_many_tokens")
    assert refusal.message == "prompts and responses have more than 4000 tokens"
    assert characters(scorer) < 20 * PIECE


def test_a_prompt_is_tokenized_a_few_times_however_many_responses_fail(scorer: Scorer) -> None:
    problem = "1 + 2 = 3\n" * 40
    scored = score(scorer, [Ask(problem, ["", *["3"] * 255])])
    assert isinstance(scored, Scored) and scored.items[0][1].failure is None
    assert characters(scorer) < 10 * len(problem)


@pytest.mark.parametrize("ask", [Ask("1 + 2", [LONG, "3"]), Ask(CHAT, [LONG_IDS, [6, 7]]), Ask(CHAT, [LONG, ""])])
def test_a_long_response_fails_alone_and_is_hardly_read(scorer: Scorer, ask: Ask) -> None:
    scored = score(scorer, [ask])
    assert isinstance(scored, Scored)
    long, short = scored.items[0]
    assert long.failure is not None and long.failure.kind == "too_long"
    assert long.failure.message.startswith("response 0 has more than 50") and "the model's 512" in long.failure.message
    assert short.failure is None or short.failure.kind == "empty_response"
    assert characters(scorer) < 4 * PIECE


@pytest.mark.parametrize(
    "ask",
    [
        Ask("1 + 2", [LONG]),
        Ask(CHAT, [LONG_IDS]),
        Conversation(PROMPT + LONG),
        Conversation(PROMPT + LONG, PROMPT),
        Conversation([1, 5, 6, 3, *LONG_IDS]),
    ],
)
def test_a_long_response_is_cut_where_the_whole_of_it_would_be(scorer: Scorer, ask: ANY) -> None:
    room = Limits(max_tokens=10**9, max_queued_tokens=10**9, token_budget=4000)
    scored = score(scorer, [ask], truncate=True)
    assert isinstance(scored, Scored)
    (item,) = scored.items[0]
    assert item.is_truncated and characters(scorer) < 8 * PIECE
    text = ask.responses[0]
    assert isinstance(text, str) or text[0] in (1, 5)
    shorter = Ask(ask.problem, [text[:60_000]]) if isinstance(ask, Ask) else Conversation(text[:60_000], ask.prompt)
    assert _numbers(scored) == _numbers(_as_before(scorer, [shorter], room, truncate=True))


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(
    "asks",
    [
        [Ask("1 + 2", [f"{number}\n{LINES}" * 4 for number in range(60)])],
        [Ask(CHAT, [LINES * 8, "", *[LINES * 30] * 12, [5] * 300, [5] * 600])],
        [Conversation(PROMPT + LINES * 8)] * 30,
        [Conversation(PROMPT + LINES * count, PROMPT) for count in (1, 8, 200, 2)],
    ],
)
def test_what_may_be_scored_is_scored_as_if_its_length_had_not_been_looked_at(
    scorer: Scorer, asks: list[ANY], truncate: bool
) -> None:
    limits = Limits(max_tokens=60_000, max_queued_tokens=100_000, token_budget=4000)
    scored = score(scorer, asks, limits, truncate=truncate, tokens=True, logprobs=True)
    before = _as_before(scorer, asks, limits, truncate=truncate, tokens=True, logprobs=True)
    assert isinstance(scored, Scored) and scored.cost.total_tokens > 500
    assert _numbers(scored) == _numbers(before)


def _as_before(scorer: Scorer, asks: Sequence[ANY], limits: Limits, **options: Any) -> Scored:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "is_long", lambda *_: False)
        scored = score(scorer, asks, limits, **options)
    assert isinstance(scored, Scored)
    return scored


def _numbers(scored: Scored) -> list[Any]:
    """All of an answer but times, and how many tokens a response that failed was said to have."""
    return [(item.failure.kind if item.failure else item) for items in scored.items for item in items]


def test_characters_that_are_none_do_not_make_a_response_slow_to_cut(tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    calls = 0
    decode = tokenizer.decode

    def counted(tokens: list[int], **options: Any) -> Any:
        nonlocal calls
        calls += len(tokens)
        return decode(tokens, **options)

    tokenizer.decode = counted  # type: ignore[method-assign]
    tokens = encode_prompt(tokenizer, [{"role": "user", "content": "\ufffd" * 2000}])
    ends = token_char_ends(tokenizer, tokens)
    assert ends == sorted(ends) and 2000 - ends[-1] < 16
    assert calls < 100 * len(tokens)
