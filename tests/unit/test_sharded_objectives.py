"""Objectives that read more than their step, with weights cut over two workers that have unequal numbers to read."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from prm_ray.core.objectives import dpo
from prm_ray.core.packing import pack
from prm_ray.models import load_model
from prm_ray.outcomelosses import Kto, OutcomeLoss, Pairs
from prm_ray.trainer import Schedule, Trainer
from prm_ray.trainingdata import share
from tests.unit.test_trainer import outcome_data

STEPS = ([0, 1, 2], [3])
"""Two items against one, and one against none."""
TOKEN_BUDGET = 14
"""So few that the responses to a prompt lie in several batches."""
OBJECTIVES: dict[str, OutcomeLoss] = {"kto": Kto(0.5), "dpo": Pairs(dpo, 0.5, None, 0)}


def losses(model: str, objective: str, rank: int, num_workers: int, parallel: str) -> list[float]:
    trainer = Trainer(
        load_model(model, "float32"), Schedule(1e-2, 20, 0.1), compute_dtype=torch.float32, parallel=parallel
    )
    data, found = outcome_data(objective=OBJECTIVES[objective]), []
    for step in STEPS:
        mine = share(step, rank, num_workers)
        batches = pack(data.groups(mine), TOKEN_BUDGET)
        loss = data.loss(mine, batches, partial(trainer.preview, token_budget=TOKEN_BUDGET))
        found.append(trainer.step(batches, loss, data.count(step)).loss)
    return found


def work(rank: int, folder: str, model: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for objective in OBJECTIVES:
        (Path(folder) / f"{objective}-{rank}.json").write_text(json.dumps(losses(model, objective, rank, 2, "fsdp")))
    dist.destroy_process_group()


def test_two_workers_with_cut_weights_give_the_losses_of_one(tiny_model: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), tiny_model), nprocs=2)
    for objective in OBJECTIVES:
        expected = losses(tiny_model, objective, 0, 1, "ddp")
        for rank in range(2):
            found = json.loads((tmp_path / f"{objective}-{rank}.json").read_text())
            assert found == pytest.approx(expected, abs=1e-4), objective
