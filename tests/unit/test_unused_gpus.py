"""A stage that is told to compute on CPUs says so where there are GPUs."""

import logging

import pytest

from prm_ray.stages.gpus import say_unused_gpus


@pytest.mark.parametrize(
    ("stage", "num_gpus", "gpus_per_worker", "said"),
    [
        ("train", 2, 0, ["train     computes on CPUs (train.gpus_per_worker is 0); Ray has 2 GPUs"]),
        ("train", 2, 1, []),
        ("train", 0, 0, []),
        ("label", 2, 0, []),
    ],
)
def test_gpus_that_nobody_asks_for_are_told_of(
    monkeypatch: pytest.MonkeyPatch, stage: str, num_gpus: int, gpus_per_worker: int, said: list[str]
) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": num_gpus})
    logger = logging.getLogger("prm_ray")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    say_unused_gpus(stage, {"gpus_per_worker": gpus_per_worker, "num_workers": 1})
    assert lines == said
