"""Continuing a response by a step: cut where the step rule says, whatever the generator did."""

import asyncio

import pytest

from prm_ray.core.steps import split_steps
from prm_ray.models import decode, load_tokenizer
from prm_ray.search.candidate import Draw, Proposal
from prm_ray.stages import continuing
from prm_ray.stages.continuing import Continuer
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions
from prm_ray.stages.threads import Threads
from prm_ray.stages.transformers_sampler import TransformersSampler

TEXT = "Step 1: 1+2\n\n  = 3\nStep 2: 3-1\n\nStep 3: é€😀 two\n\n\nAnswer: 2"


def options(model: str, max_tokens: int = 200) -> SamplerOptions:
    return SamplerOptions(
        "transformers", model, "float32", False, Decoding(1, 1.0, 1.0), max_tokens, 512, 0, Threads(number=1), 0, {}
    )


class Reciter:
    """A generator that knows one response, and stops as a real one does: behind a stop text, or at its end token."""

    def __init__(self, tokenizer, prompt: list[int], text: str = TEXT):
        self.tokens = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        self._tokenizer, self._prompt = tokenizer, prompt
        self.limits: list[int] = []

    async def sample(self, prompts, seeds, max_tokens, decoding):
        (prompt,), (limit,) = prompts, max_tokens
        self.limits.append(limit)
        begun = len(prompt) - len(self._prompt)
        assert prompt == [*self._prompt, *self.tokens[:begun]], "a grown response is its own tokens"
        for end in range(begun + 1, min(begun + limit, len(self.tokens)) + 1):
            text = decode(self._tokenizer, self.tokens[begun:end])
            if any(stop in text for stop in decoding.stop):
                return [[Sample(self.tokens[begun:end], [], "stop", at_stop_text=True)]]
        reason = "stop" if end == len(self.tokens) else "length"
        return [[Sample(self.tokens[begun:end], [], reason)]]


def recited(tiny_model: str, rule: str, monkeypatch: pytest.MonkeyPatch, **more) -> list[Proposal]:
    """All steps of a response, drawn one after the other."""
    tokenizer = load_tokenizer(tiny_model)
    prompt = tokenizer("What?").input_ids
    reciter = Reciter(tokenizer, prompt, **more)
    monkeypatch.setattr(continuing, "make_sampler", lambda options: reciter)
    continuer = Continuer(options(tiny_model), tokenizer, rule)
    steps: list[Proposal] = []
    tokens, text = (), ""
    while not steps or steps[-1].finish_reason is None:
        steps.append(asyncio.run(continuer(prompt, tokens, text, Draw(whole=False))))
        assert steps[-1].error is None
        tokens, text = (*tokens, *steps[-1].tokens), steps[-1].text
    assert list(tokens) == reciter.tokens and text == decode(tokenizer, tokens)
    return steps


@pytest.mark.parametrize("rule", ["newline", "blank_line", "step_k", r"regex:(?m)^Step \d", "none"])
def test_steps_drawn_one_by_one_are_the_response_and_its_steps(tiny_model: str, rule: str, monkeypatch):
    steps = recited(tiny_model, rule, monkeypatch)
    wanted = split_steps(TEXT, rule)
    texts = [each.text for each in steps]
    # white space behind a separator may come with the next step: the generator stopped before it was there
    assert [text.rstrip() for text in texts] == ["".join(wanted[: n + 1]).rstrip() for n in range(len(wanted))]
    assert [each.finish_reason for each in steps] == [None] * (len(steps) - 1) + ["stop"]


def test_what_is_drawn_beyond_a_step_is_dropped_and_counted(tiny_model: str, monkeypatch):
    steps = recited(tiny_model, "step_k", monkeypatch)
    assert sum(each.num_sampled for each in steps) > sum(len(each.tokens) for each in steps)
    steps = recited(tiny_model, "newline", monkeypatch)
    assert sum(each.num_sampled for each in steps) == sum(len(each.tokens) for each in steps)


def test_a_response_that_never_ends_is_cut_at_the_limit(tiny_model: str, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    reciter = Reciter(tokenizer, [5], text="no end " * 300)
    monkeypatch.setattr(continuing, "make_sampler", lambda options: reciter)
    for rule in ("newline", "step_k"):
        proposal = asyncio.run(Continuer(options(tiny_model, 150), tokenizer, rule)([5], (), "", Draw(whole=False)))
        assert proposal.finish_reason == "length" and len(proposal.tokens) == 150


def test_a_generator_that_gives_nothing_is_an_error_and_no_loop(tiny_model: str, monkeypatch):
    class Silent:
        async def sample(self, *_):
            return [[Sample([], [], "length")]]

    monkeypatch.setattr(continuing, "make_sampler", lambda options: Silent())
    continuer = Continuer(options(tiny_model), load_tokenizer(tiny_model), "newline")
    assert (asyncio.run(continuer([5], (), "", Draw(whole=False))).error or "").startswith("empty_response")


def test_a_response_without_room_is_an_error(tiny_model: str, monkeypatch):
    monkeypatch.setattr(continuing, "make_sampler", lambda options: None)
    continuer = Continuer(options(tiny_model, 4), load_tokenizer(tiny_model), "newline")
    assert (asyncio.run(continuer([5], (1, 2, 3, 4), "abcd", Draw(whole=False))).error or "").startswith("no_room")


def test_transformers_stops_a_response_at_a_stop_text_and_merges_draws_that_come_together(tiny_model: str):
    tokenizer = load_tokenizer(tiny_model)
    sampler = TransformersSampler(options(tiny_model))
    stop = Decoding(1, 1.0, 1.0, ("e",))
    samples = asyncio.run(sampler.sample([[5, 6], [7]] * 8, list(range(16)), None, stop))
    stopped = [one for (one,) in samples if one.at_stop_text]
    assert stopped and all("e" in decode(tokenizer, one.tokens) for one in stopped)
    assert all("e" not in decode(tokenizer, one.tokens[:-1]) for one in stopped)
    assert all(len(one.tokens) == len(one.logprobs) for (one,) in samples)


def test_a_real_engine_continues_many_at_a_time(tiny_model: str):
    continuer = Continuer(options(tiny_model, 60), load_tokenizer(tiny_model), "newline")

    async def work() -> list[Proposal]:
        draws = (continuer([5, 6], (), "", Draw(whole, seed=n)) for n in range(6) for whole in (True, False))
        return await asyncio.gather(*draws)

    found = asyncio.run(work())
    assert all(each.error is None and 1 <= len(each.tokens) <= 60 for each in found)
    assert all((each.finish_reason is None) <= ("\n" in each.text) for each in found)


@pytest.mark.parametrize("rule", ["newline", "blank_line", "step_k", "none"])
@pytest.mark.parametrize("stop", ["\n\nStep 3", "😀", "= 3\nS", "wo", "Answer"])
def test_a_response_ends_before_a_stop_text_wherever_steps_and_tokens_end(tiny_model: str, rule: str, stop: str):
    tokenizer = load_tokenizer(tiny_model)
    reciter = Reciter(tokenizer, [5])
    continuer = Continuer(options(tiny_model), tokenizer, rule, reciter)
    wanted = TEXT[: TEXT.index(stop)]
    for whole in (True, False):
        last = Proposal()
        tokens: tuple[int, ...] = ()
        while last.finish_reason is None:
            draw, decoding = Draw(whole), Decoding(1, 1.0, 1.0, (stop,))
            last = asyncio.run(continuer([5], tokens, last.text, draw, None, decoding))
            tokens = (*tokens, *last.tokens)
        assert (last.text, last.finish_reason, tokens[-1]) == (wanted, "stop", tokenizer.eos_token_id)
        # of a stop text that began in the step before, its beginning stays among the tokens
        assert decode(tokenizer, tokens) in (wanted, *(wanted + stop[:end] for end in range(1, len(stop))))


def test_a_request_has_its_own_temperature_and_greedy_draws_have_none(tiny_model: str):
    seen: list[Decoding] = []

    class Noting:
        async def sample(self, prompts, seeds, max_tokens, decoding):
            seen.append(decoding)
            return [[Sample([9], [], "stop")]]

    continuer = Continuer(options(tiny_model), load_tokenizer(tiny_model), "newline", Noting())
    own = Decoding(4, 0.3, 0.9, ("x",))
    for greedy in (False, True):
        asyncio.run(continuer([5], (), "", Draw(whole=False, greedy=greedy), 20, own))
    assert seen == [Decoding(1, 0.3, 0.9, ("\n", "x")), Decoding(1, 0.0, 1.0, ("\n", "x"))]
