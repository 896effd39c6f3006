"""Figures on what training holds out: of any number of workers, each of which reads a part."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prm_ray.models import load_model
from prm_ray.stages import trainingsets
from prm_ray.stages.trainingsets import held_out_measure, selected_responses, store_rows
from prm_ray.trainer import Schedule, Trainer
from tests.tables_by_hand import tiny_config, write_reference_table

Triple = tuple[int, float, float]


def test_workers_share_what_is_held_out_and_have_the_figures_of_one(
    tmp_path: Path, tiny_model: str, other_tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them, one after the other: the second has what the first says to it."""
    config = tiny_config(tmp_path / "run", tiny_model, train={"validation_fraction": 0.5})
    folder = write_reference_table(config)
    measure = held_out_measure(config, store_rows(selected_responses(config).table, config, folder))
    model = load_model(other_tiny_model, "float32")
    trainer = Trainer(model, Schedule(1e-3, 1, 0.0), compute_dtype=torch.float32)
    alone, said = measure(trainer), []

    def collected(found: list[Triple]) -> list[Triple]:
        said.append(found)
        return [each for of_worker in reversed(said) for each in of_worker]

    def figures(rank: int) -> dict[str, Any]:
        monkeypatch.setattr(trainingsets, "world", lambda: (rank, 2))
        monkeypatch.setattr(trainingsets, "collected", collected)
        return measure(trainer)

    figures(1)
    assert figures(0) == pytest.approx(alone, abs=1e-5) and 0 < alone["held_out_auc"] < 1
    assert [len(found) for found in said] == [2 * 4, 3 * 4]
