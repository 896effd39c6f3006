"""Costs of a run from manifests written by hand: scoring against generating, by response token."""

from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.stages.costs import scoring_cost, stage_rows
from prm_ray.tables import StageFolder

GENERATE = {"seconds": 100.0, "tokens": 1000, "resumed": False, "resources": {"num_engines": 2, "gpus_per_engine": 0}}
SCORE = {"seconds": 10.0, "tokens": 200, "resumed": False, "resources": {"num_workers": 1, "gpus_per_worker": 0}}
REFERENCE = {"seconds": 40.0, "tokens": 1000, "resumed": False}


def run_with(tmp_path: Path, with_reference: bool = True, **manifests: dict[str, Any]) -> RunConfig:
    for stage, manifest in manifests.items():
        folder = StageFolder(tmp_path, stage)
        folder.path.mkdir(parents=True)
        folder.finish({"stage": stage, **manifest})
    return RunConfig.model_validate({"run": {"dir": str(tmp_path)}, "score": {"with_reference": with_reference}})


def test_scoring_is_compared_with_generating_by_response_token(tmp_path: Path) -> None:
    """0.1 s a token generated, 0.05 s scored by the policy, 0.04 s by the reference."""
    config = run_with(tmp_path, generate=GENERATE, score=SCORE, reference=REFERENCE)
    cost = scoring_cost(config)
    assert cost is not None
    assert (cost["policy"], cost["reference"], cost["total"]) == pytest.approx((0.5, 0.4, 0.9))
    assert cost["seconds_per_1000_tokens"]["generate"] == pytest.approx(100) and not cost["on_gpus"]


def test_the_reference_costs_nothing_where_rewards_do_without_it(tmp_path: Path) -> None:
    cost = scoring_cost(run_with(tmp_path, with_reference=False, generate=GENERATE, score=SCORE))
    assert cost is not None and (cost["reference"], cost["total"]) == (0, pytest.approx(0.5))


def test_gpu_seconds_count_every_gpu(tmp_path: Path) -> None:
    """Four GPUs generate for 100 s, one scores for 10 s: 400 and 10 GPU-seconds."""
    engines, worker = {"num_engines": 2, "gpus_per_engine": 2}, {"num_workers": 1, "gpus_per_worker": 1.0}
    stages = {"generate": GENERATE | {"resources": engines}, "score": SCORE | {"resources": worker}}
    cost = scoring_cost(run_with(tmp_path, with_reference=False, **stages))
    assert cost is not None and cost["on_gpus"] and cost["total"] == pytest.approx(0.05 / 0.4)


@pytest.mark.parametrize(
    "score", [SCORE | {"resumed": True}, SCORE | {"tokens": 0}, SCORE | {"resources": {"gpus_per_worker": 1}}]
)
def test_seconds_that_say_nothing_give_no_share(tmp_path: Path, score: dict[str, Any]) -> None:
    """Of the last start only; of no token; of a GPU, against a generator without one."""
    assert scoring_cost(run_with(tmp_path, with_reference=False, generate=GENERATE, score=score)) is None


def test_a_run_that_generated_nothing_has_no_share(tmp_path: Path) -> None:
    assert scoring_cost(run_with(tmp_path, with_reference=False, score=SCORE)) is None


def test_every_finished_stage_is_a_row_with_its_operations(tmp_path: Path) -> None:
    train = {"tokens": 10, "details": {"num_parameters": 3, "trained_tokens": 20}}
    rows = stage_rows(run_with(tmp_path, generate=GENERATE, train=train, evaluate={}))
    assert [(row["stage"], row["flops"]) for row in rows] == [("generate", None), ("train", 6 * 3 * 20)]
    assert rows[0]["tokens_per_second"] == 10
