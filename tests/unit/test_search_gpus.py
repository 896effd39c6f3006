"""What a search makes of the GPUs it is given, without any."""

import asyncio
from typing import Any

import pytest

from prm_ray.search.pool import Pool, WorkerDiedError
from prm_ray.settings import SearchSection
from prm_ray.stages.sampling import Decoding, SamplerOptions
from prm_ray.stages.search import start_pools
from prm_ray.stages.searching.workers import engine_of
from prm_ray.stages.threads import Threads
from tests.virtualtime import run_in_virtual_time


def options(backend: str, engine_options: dict[str, Any]) -> SamplerOptions:
    return SamplerOptions(
        backend,
        "nowhere",
        "bfloat16",
        trust_remote_code=False,
        decoding=Decoding(1, 1.0, 1.0),
        max_tokens=512,
        max_model_len=1024,
        num_gpus=1,
        threads=Threads(),
        seed=0,
        engine_options=engine_options,
    )


def engine(gpus: float, backend: str = "vllm", responses: int = 256, **given: Any) -> tuple[int, dict[str, Any]]:
    section = SearchSection(gpus_per_generator=gpus, responses_per_generator=responses)
    made = engine_of(section, options(backend, given))
    return made.num_gpus, made.engine_options


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (engine(1), (1, {"max_num_seqs": 256})),
        (engine(4, responses=512), (4, {"max_num_seqs": 512})),
        (engine(0.5), (1, {"max_num_seqs": 256, "gpu_memory_utilization": 0.45})),
        (engine(1, max_num_seqs=64), (1, {"max_num_seqs": 64})),
        (engine(0), (0, {})),
        (engine(1, backend="transformers"), (1, {})),
    ],
)
def test_an_engine_on_a_gpu_works_on_as_many_responses_as_it_is_given(made: Any, expected: Any):
    assert made == expected


def test_an_engine_is_not_told_of_more_responses_than_a_pass_has_tokens():
    """vLLM does not start then."""
    assert engine(1, responses=4096)[1]["max_num_seqs"] == 2048
    given = engine(1, responses=4096, max_num_batched_tokens=8192)[1]
    assert given == {"max_num_seqs": 4096, "max_num_batched_tokens": 8192}


class Loading:
    """A worker that notes when it begins to load and when it is up; `dies` so often meanwhile."""

    def __init__(self, name: str, notes: list[str], dies: int = 0):
        self._name, self._notes, self._dies = name, notes, dies

    async def start(self) -> None:
        self._notes.append(f"{self._name} loads")
        await asyncio.sleep(1)
        if self._dies:
            self._dies -= 1
            raise WorkerDiedError("no reason is known")
        self._notes.append(f"{self._name} is up")

    async def run(self, job: str) -> str:
        return job

    async def stop(self) -> None:
        pass


def notes_of_a_start(generator_dies: int = 0, **settings: Any) -> list[str]:
    """Of two generators and two scorers, until the search may begin."""
    notes: list[str] = []
    generators: Any = Pool("generators", lambda: Loading("generator", notes, generator_dies), 2, room=1)
    scorers: Any = Pool("scorers", lambda: Loading("scorer", notes), 2, room=1)

    async def start() -> list[str]:
        try:
            await start_pools(generators, scorers, SearchSection(**settings))
            return list(notes)
        finally:
            await asyncio.gather(generators.close(), scorers.close())

    return run_in_virtual_time(start())


def test_of_those_that_share_a_gpu_nobody_loads_while_an_engine_starts():
    """What another loads then is taken from the engine's cache for good."""
    scorers, generator = ["scorer loads", "scorer is up"] * 2, ["generator loads", "generator is up"]
    assert notes_of_a_start(gpus_per_generator=0.4, gpus_per_scorer=0.1) == generator * 2 + scorers
    assert notes_of_a_start(gpus_per_generator=0.1, gpus_per_scorer=0.4) == scorers + generator * 2
    again = ["generator loads", *generator]
    assert notes_of_a_start(generator_dies=1, gpus_per_generator=0.4, gpus_per_scorer=0.1) == again * 2 + scorers


@pytest.mark.parametrize("gpus", [0, 1])
def test_those_that_share_no_gpu_start_at_the_same_time(gpus: int):
    begin = ["generator loads"] * 2 + ["scorer loads"] * 2
    assert notes_of_a_start(gpus_per_generator=gpus, gpus_per_scorer=gpus)[:4] == begin


def test_engines_that_start_in_turn_fail_as_others_do():
    with pytest.raises(WorkerDiedError, match="no reason is known"):
        notes_of_a_start(generator_dies=99, gpus_per_generator=0.4)
