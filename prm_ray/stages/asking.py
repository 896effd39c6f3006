"""Asks a sampler so that one bad prompt costs its own rows and not the run.

An engine may die of a prompt, and again each time the shard is started anew. So a shard that has lost its worker twice
asks for one prompt after the other, with nothing else in the engine, and notes each where it outlives the worker, and
the machine: the prompt that was in hand when it died twice more is set aside.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from prm_ray.errors import EngineError, UserError
from prm_ray.folders import Notes
from prm_ray.runlog import log
from prm_ray.stages.sampling import Sample, Sampler

_TOGETHER = 2
"""Starts of a shard that ask for all its prompts at once: most workers die of something else than a prompt."""
_ALONE = 2
"""Workers that a prompt may take with it when it is asked for alone."""
MAX_STARTS = _TOGETHER + 4 * _ALONE + 1
"""Of a shard: enough for four such prompts. An engine that dies of whatever it is asked is not worth more."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and the seed its samples are drawn with."""

    prompt_id: str
    tokens: list[int]
    seed: int


Answer = list[Sample] | str
"""Samples, or the reason why there are none."""


class Asker:
    """One sampler, asked for several shards at a time."""

    def __init__(self, sampler: Sampler):
        self._sampler, self._turns = sampler, _Turns()

    async def ask(self, prompts: Sequence[Asked], notes: Path) -> list[Answer]:
        """An answer a prompt. `notes` is a place of the shard's own, where nothing is left when all are answered.

        Raises `EngineError` if the sampler raises for every single prompt, and the `UserError` that it raises for any.
        """
        journal = _Journal(notes)
        answers = await self._together(prompts) if journal.begin() <= _TOGETHER else None
        if answers is None:
            answers = await self._one_by_one(prompts, journal)
        journal.end()
        return answers

    async def _together(self, prompts: Sequence[Asked]) -> list[Answer] | None:
        """None if the sampler raises: nobody knows which prompt it was."""
        try:
            async with self._turns.shared():
                return [*await self._sample(prompts)]
        except UserError:
            raise
        except Exception as error:
            log.warning("sampling failed (%s): asking for one prompt after the other", _in_words(error))
            return None

    async def _one_by_one(self, prompts: Sequence[Asked], journal: _Journal) -> list[Answer]:
        deaths, raised = journal.deaths(), list[Exception]()
        answers: list[Answer] = []
        for prompt in prompts:
            if deaths[prompt.prompt_id] >= _ALONE:
                answers.append(f"worker_died: {deaths[prompt.prompt_id]} times when asked for this alone")
                continue
            async with self._turns.alone():
                journal.asking(prompt.prompt_id)
                try:
                    answers += await self._sample([prompt])
                except UserError:
                    raise
                except Exception as error:  # whatever it is, it is of this prompt: the others are answered
                    raised.append(error)
                    answers.append(f"sampler_error: {_in_words(error)}")
                journal.answered()
        if raised and len(raised) == len(prompts):
            raise EngineError(f"no prompt was answered: {_in_words(raised[-1])}") from raised[-1]
        return answers

    async def _sample(self, prompts: Sequence[Asked]) -> list[list[Sample]]:
        return await self._sampler.sample([each.tokens for each in prompts], [each.seed for each in prompts])


class _Turns:
    """Many at once, or one alone."""

    def __init__(self) -> None:
        self._entrance, self._nobody = asyncio.Lock(), asyncio.Event()
        self._nobody.set()
        self._inside = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._entrance:
            self._inside += 1
            self._nobody.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._nobody.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._entrance:
            await self._nobody.wait()
            yield


class _Journal:
    """Lines of notes: `start`, then `asking ID` and `answered` for each prompt that is asked for alone."""

    def __init__(self, path: Path):
        self._notes = Notes(path)

    def begin(self) -> int:
        """How often the shard has been started, this time too."""
        self._notes.add("start")
        return self._notes.lines().count("start")

    def asking(self, prompt_id: str) -> None:
        self._notes.add(f"asking {prompt_id}")

    def answered(self) -> None:
        self._notes.add("answered")

    def end(self) -> None:
        self._notes.remove()

    def deaths(self) -> Counter[str]:
        """Prompt -> how many earlier starts ended while it was asked for."""
        lines = self._notes.lines()
        return Counter(
            line.removeprefix("asking ")
            for line, following in pairwise(lines)
            if line.startswith("asking ") and following == "start"
        )


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
