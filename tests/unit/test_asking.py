"""Which prompt is set aside when a sampler raises or its worker dies, and that all others are answered."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from prm_ray.errors import EngineError, UserError
from prm_ray.stages.asking import MAX_STARTS, Answer, Asked, Asker
from prm_ray.stages.sampling import Decoding, Sample


class Died(Exception):
    """The worker's process is gone."""


class Sampler:
    """Says each prompt again, but for those it raises an error at or dies of; `sizes` is how many it had at a time."""

    def __init__(self, raises: int | None = None, dies: Sequence[int] = (), error: Exception | None = None):
        self._raises, self._dies, self._error = raises, set(dies), error or ValueError("odd")
        self.sizes: list[int] = []
        self.inside: set[int] = set()
        self.death = asyncio.Event()

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]:
        self.sizes.append(len(prompts))
        firsts = {prompt[0] for prompt in prompts}
        self.inside |= firsts
        await asyncio.sleep(0.001)
        if self.inside & self._dies:  # whatever else is in the engine goes with it
            self.death.set()
            await asyncio.Event().wait()  # nothing goes on in a process that is gone
        self.inside -= firsts
        if self._raises in firsts:
            raise self._error
        return [[Sample(list(prompt), [-1.0], "stop")] for prompt in prompts]

    def close(self) -> None:
        """Nothing to stop."""


def prompts(*numbers: int) -> list[Asked]:
    return [Asked(f"p{number}", [number], number) for number in numbers]


async def one_life(sampler: Sampler, shards: dict[Path, list[Asked]]) -> list[list[Answer]]:
    """Of a worker: it answers all its shards, or dies."""
    asker = Asker(sampler)
    work = [asyncio.ensure_future(asker.ask(asked, notes)) for notes, asked in shards.items()]
    death = asyncio.ensure_future(sampler.death.wait())
    while not death.done() and not all(each.done() for each in work):
        left = [each for each in (*work, death) if not each.done()]
        await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
    died = death.done()
    for each in (*work, death):
        each.cancel()
    answers = await asyncio.gather(*work, return_exceptions=died)
    if died:
        raise Died
    return answers


def ask(sampler: Sampler, notes: Path, *numbers: int) -> list[Answer]:
    return asyncio.run(one_life(sampler, {notes: prompts(*numbers)}))[0]


def words(answers: list[Answer]) -> list[str]:
    return [answer if isinstance(answer, str) else str(answer[0].tokens[0]) for answer in answers]


def test_without_trouble_all_are_asked_at_once_and_no_notes_stay(tmp_path: Path):
    sampler = Sampler()
    assert words(ask(sampler, tmp_path / "notes", 0, 1, 2)) == ["0", "1", "2"]
    assert sampler.sizes == [3] and not list(tmp_path.iterdir())


def test_a_prompt_at_which_the_sampler_raises_is_an_error_and_the_others_are_answered(tmp_path: Path):
    answers = words(ask(Sampler(raises=1), tmp_path / "notes", 0, 1, 2))
    assert answers == ["0", "sampler_error: ValueError: odd", "2"]


def test_a_sampler_that_answers_nothing_ends_the_stage(tmp_path: Path):
    with pytest.raises(EngineError, match="no prompt was answered: ValueError: odd"):
        ask(Sampler(raises=0), tmp_path / "notes", 0)
    with pytest.raises(UserError, match="no GPU"):
        ask(Sampler(raises=0, error=UserError("no GPU")), tmp_path / "notes", 0, 1)


def test_a_prompt_of_which_workers_die_is_set_aside_alone(tmp_path: Path):
    starts = 0
    while True:
        starts += 1
        try:
            answers = words(ask(Sampler(dies=[1, 3]), tmp_path / "notes", 0, 1, 2, 3, 4))
            break
        except Died:
            assert starts < MAX_STARTS
    assert answers[0] == "0" and answers[2] == "2" and answers[4] == "4"
    assert answers[1] == answers[3] == "worker_died: 2 times when asked for this alone"
    assert starts == 2 + 2 * 2 + 1


def test_a_shard_that_shares_its_worker_with_a_deadly_prompt_loses_none_of_its_own(tmp_path: Path):
    shards = {tmp_path / "first": prompts(0, 1), tmp_path / "second": prompts(10, 11, 12)}
    for _ in range(MAX_STARTS):
        try:
            first, second = asyncio.run(one_life(Sampler(dies=[1]), shards))
            break
        except Died:
            continue
    assert words(first) == ["0", "worker_died: 2 times when asked for this alone"]
    assert words(second) == ["10", "11", "12"]
