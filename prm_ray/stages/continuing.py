"""Continues a response by a step, or to its end: token ids in, token ids out, cut where the step rule says.

Generators stop at texts, step rules are patterns: so a step is drawn up to the rule's separator where it has one, else
piece by piece until the rule finds the next step's beginning, and what was drawn beyond it is dropped (and counted).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from prm_ray.core.steps import step_char_ends, token_ends_at
from prm_ray.models import decode, encode_response, token_char_ends
from prm_ray.scoring.batcher import Batcher, Size
from prm_ray.search.candidate import Draw, Proposal
from prm_ray.stages.sampler import make_sampler
from prm_ray.stages.sampling import Decoding, Sample, Sampler, SamplerOptions, stop_place
from prm_ray.stages.transformers_sampler import SEQUENCES, TransformersSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STOP_TEXTS = {"newline": ("\n",), "blank_line": ("\n\n",)}
"""Step rule -> the text behind which a step has ended."""
_PIECE = 64
"""Tokens drawn at a time by a rule without such a text."""
_CONTEXT = 8
"""Tokens before a piece that its text is decoded behind; see `token_char_ends`."""


class Continuer:
    """One engine and its tokenizer; any number of continuations at a time, inside one event loop."""

    def __init__(
        self,
        options: SamplerOptions,
        tokenizer: PreTrainedTokenizerFast,
        step_rule: str,
        sampler: Sampler | None = None,
    ):
        """`sampler` is one that is there already; none = a new one."""
        self._options, self._tokenizer, self._rule = options, tokenizer, step_rule
        self._sampler = sampler or make_sampler(options)
        self._draw_one = _drawer(self._sampler).draw

    async def __call__(
        self,
        prompt: Sequence[int],
        tokens: Sequence[int],
        text: str,
        draw: Draw,
        max_tokens: int | None = None,
        decoding: Decoding | None = None,
    ) -> Proposal:
        """Continue the response `tokens`, which reads `text`, behind `prompt`.

        `max_tokens` is the most a whole response may have, `decoding` how it is drawn (before a text of its `stop` the
        response ends); none = as the options say.
        """
        decoding = decoding or self._options.decoding
        most = min(max_tokens or self._options.max_tokens, self._options.max_model_len - len(prompt))
        room = most - len(tokens)
        if room < 1:
            return Proposal(error=f"no_room: {len(prompt)} tokens of prompt and {len(tokens)} of response are the most")
        piece: list[int] = []
        num_sampled = 0
        while True:
            sample = await self._sample([*prompt, *tokens, *piece], room - len(piece), draw, decoding)
            num_sampled += len(sample.tokens)
            piece += sample.tokens
            if not sample.tokens:
                return Proposal(num_sampled=num_sampled, error="empty_response: the generator gave no token")
            shown, char_ends = self._decode(tokens, piece, is_cut=not draw.whole or bool(decoding.stop))
            end = None if draw.whole else self._step_end(shown, char_ends, sample.at_stop_text)
            stop = stop_place(text + shown, len(text), decoding.stop)
            if end is not None and (stop is None or len(text) + char_ends[end - 1] <= stop):
                shown = shown[: char_ends[end - 1]]
                finish_reason = "length" if end == room else None
                return Proposal(tuple(piece[:end]), text + shown, finish_reason, num_sampled)
            if stop is not None:
                kept = self._until(stop - len(text), piece, shown, char_ends)
                return Proposal(kept, (text + shown)[:stop], "stop", num_sampled)
            if sample.finish_reason == "stop" and not sample.at_stop_text:
                return Proposal(tuple(piece), text + shown, "stop", num_sampled)
            if len(piece) >= room:
                return Proposal(tuple(piece), text + shown, "length", num_sampled)

    def close(self) -> None:
        """Stop the engine."""
        self._sampler.close()

    async def _sample(self, prompt: Sequence[int], room: int, draw: Draw, own: Decoding) -> Sample:
        stops = () if draw.whole else _STOP_TEXTS.get(self._rule, ())
        max_tokens = room if draw.whole or stops or self._rule == "none" else min(room, _PIECE)
        temperature, top_p = (0.0, 1.0) if draw.greedy else (own.temperature, own.top_p)
        decoding = Decoding(1, temperature, top_p, (*stops, *own.stop))
        return await self._draw_one(prompt, draw.seed, max_tokens, decoding)

    def _decode(self, tokens: Sequence[int], piece: Sequence[int], is_cut: bool) -> tuple[str, list[int]]:
        """The piece's text and, for one that may be cut, where in it each of its tokens ends: that takes its time."""
        context = list(tokens[-_CONTEXT:])
        before = len(decode(self._tokenizer, context)) if context else 0
        shown = decode(self._tokenizer, [*context, *piece])[before:]
        ends = token_char_ends(self._tokenizer, [*context, *piece])[len(context) :] if is_cut else []
        return shown, [max(0, end - before) for end in ends]

    def _until(self, stop: int, piece: Sequence[int], shown: str, char_ends: Sequence[int]) -> tuple[int, ...]:
        """Tokens of the piece's text up to `stop`, closed as a response is; a token that reads on is written anew.

        A `stop` before the piece (its text began in the step before) leaves none of it.
        """
        kept = max((end for end in char_ends if end <= stop), default=0)
        num_whole = bisect_left(char_ends, kept) + 1 if kept else 0  # no first bytes of a character behind it
        return (*piece[:num_whole], *encode_response(self._tokenizer, shown[kept : max(0, stop)]))

    def _step_end(self, text: str, char_ends: Sequence[int], at_stop_text: bool) -> int | None:
        """Tokens of the piece up to its first step's end; None while that is not there yet.

        A separator at the very end counts if the generator stopped at it, and there is more than white space before.
        """
        first, *others = step_char_ends(text, self._rule)
        if others:
            return token_ends_at([first], char_ends)[0]
        return len(char_ends) if at_stop_text and text.strip() else None


def _drawer(sampler: Sampler) -> _Single | _Merged:
    return _Merged(sampler) if isinstance(sampler, TransformersSampler) else _Single(sampler)


class _Single:
    """Every draw is a request of its own: the engine merges them."""

    def __init__(self, sampler: Sampler):
        self._sampler = sampler

    async def draw(self, prompt: Sequence[int], seed: int, max_tokens: int, decoding: Decoding) -> Sample:
        ((sample,),) = await self._sampler.sample([prompt], [seed], [max_tokens], decoding)
        return sample


_Job = tuple[Sequence[int], int, int, Decoding]


class _Merged:
    """Draws that come while a batch is computed are the next batch: transformers computes one at a time."""

    def __init__(self, sampler: TransformersSampler):
        self._sampler = sampler
        self._batcher: Batcher[_Job, Sample] | None = None

    async def draw(self, prompt: Sequence[int], seed: int, max_tokens: int, decoding: Decoding) -> Sample:
        if self._batcher is None:  # made in the loop of the first draw: an actor is constructed outside of it
            # how many threads compute is a property of the thread that asks, and the batcher has one of its own
            threads = partial(torch.set_num_threads, self._sampler.num_threads)
            self._batcher = Batcher(self._work, SEQUENCES, max_queued_tokens=2**62, initializer=threads)
        (result,) = await self._batcher.submit([(prompt, seed, max_tokens, decoding)], [Size(1)])
        if isinstance(result, BaseException):
            raise result
        return result[0]

    def _work(self, jobs: list[_Job]) -> list[Sample]:
        found: dict[int, Sample] = {}
        for decoding in dict.fromkeys(job[3] for job in jobs):
            alike = {number: job for number, job in enumerate(jobs) if job[3] == decoding}
            prompts, seeds, limits, _ = zip(*alike.values(), strict=True)
            samples = asyncio.run(self._sampler.sample(prompts, seeds, limits, decoding))
            found |= {number: sample for number, (sample,) in zip(alike, samples, strict=True)}
        return [found[number] for number in range(len(jobs))]
