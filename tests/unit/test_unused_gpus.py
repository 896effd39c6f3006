"""A stage that is told to compute on CPUs says so where there are GPUs."""

from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.runlog import log
from prm_ray.stages.gpus import say_unused_gpus

ON_CPUS = "train     computes on CPUs where train.gpus_per_worker is 0; Ray has 2 GPUs"


@pytest.mark.parametrize(
    ("stage", "num_gpus", "settings", "said"),
    [
        ("train", 2, {}, [ON_CPUS]),
        ("train", 2, {"train": {"gpus_per_worker": 1}}, []),
        ("train", 0, {}, []),
        ("label", 2, {}, []),
        ("generate", 2, {"generate": {"backend": "mine:Mine"}}, []),
        ("reference", 2, {"reference": {"logprobs": "sampled"}}, []),
        ("step_label", 2, {"step_label": {"method": "monte_carlo"}}, []),
        (
            "search",
            4,
            {"search": {"gpus_per_generator": 1}},
            ["search    computes on CPUs where search.gpus_per_scorer is 0; Ray has 4 GPUs"],
        ),
        ("serve", 1, {}, ["serve     computes on CPUs where serve.gpus_per_replica is 0; Ray has 1 GPUs"]),
    ],
)
def test_gpus_that_nobody_asks_for_are_told_of(
    monkeypatch: pytest.MonkeyPatch, stage: str, num_gpus: int, settings: dict[str, Any], said: list[str]
) -> None:
    lines: list[str] = []
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": num_gpus}}, {"Alive": True, "Resources": {}}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr(log, "info", lambda text, *values: lines.append(text % values))
    say_unused_gpus(RunConfig.model_validate(settings), stage)
    assert lines == said
