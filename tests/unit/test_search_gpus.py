"""What a search makes of the GPUs it is given, without any."""

from typing import Any

import pytest

from prm_ray.settings import SearchSection
from prm_ray.stages.sampling import Decoding, SamplerOptions
from prm_ray.stages.searching.workers import engine_of
from prm_ray.stages.threads import Threads


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
