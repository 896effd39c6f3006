"""Plans for nodes that engines or workers do not fill: what is left over on each of two nodes makes no third engine."""

from pathlib import Path

import pytest

from prm_ray.config import load_config
from prm_ray.errors import UserError
from prm_ray.planning.hardware import cluster_of_gpus
from prm_ray.planning.memory import Training
from prm_ray.planning.plan import Plan, plan_run
from prm_ray.planning.rates import Stepping, step_seconds
from prm_ray.planning.shapes import Shape

PAPER = Path(__file__).resolve().parents[2] / "configs" / "llama31_8b_implicit_prm.toml"
ON_TWELVE = ["reference.num_workers=12", "train.num_workers=12", "score.num_workers=12"]


def plan_of(*words: str) -> Plan:
    """On two nodes of six GPUs."""
    return plan_run(load_config(PAPER, [*ON_TWELVE, *words]), cluster_of_gpus("6xL40S", 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["generate.gpus_per_engine=4", "generate.num_engines=3"],
            "generate.num_engines 3 with generate.gpus_per_engine 4 must each be within a node; there is room for 2: "
            "2 nodes of 6 x L40S (44.4 GiB each); all would have room with generate.num_engines=2",
        ),
        (
            ["score.gpus_per_worker=0.6", "score.num_workers=13"],
            "score.num_workers 13 with score.gpus_per_worker 0.6 must each be within a GPU; there is room for 12: ",
        ),
    ],
)
def test_more_than_the_nodes_hold_does_not_fit(words: list[str], message: str):
    with pytest.raises(UserError) as error:
        plan_of(*words)
    assert message in str(error.value)


def test_gpus_are_idle_where_another_engine_has_room_on_one_node():
    def notes(num_engines: int) -> tuple[str, ...]:
        plan = plan_of("generate.gpus_per_engine=4", f"generate.num_engines={num_engines}")
        return next(stage for stage in plan.stages if stage.stage == "generate").notes

    assert notes(1) == ("8 GPUs are idle: generate.num_engines=2",)
    assert notes(2) == ()


def test_advice_asks_for_no_more_engines_than_the_nodes_hold():
    large = "model.name=meta-llama/Llama-3.1-70B-Instruct"
    plan = plan_of(large, "generate.gpus_per_engine=2", "generate.num_engines=6")
    assert plan.advice["generate"] == ("generate.gpus_per_engine=4", "generate.num_engines=2")


@pytest.mark.parametrize(
    ("workers", "gpus", "nodes"),
    [(8, 1, 1), (9, 1, 2), (4, 2, 1), (5, 2, 2), (2, 5, 2), (8, 0.6, 1), (12, 0.6, 2)],
)
def test_gradients_cross_the_network_where_a_node_has_no_room_for_all_workers(workers: int, gpus: float, nodes: int):
    """NVLink of 450 GB/s within a node, 50 GB/s between nodes."""
    shape, step = Shape(8, 3, 16, 2, 1, 100, True), Stepping(1000, 1, gpus)
    _, waiting = step_seconds(shape, Training(num_workers=workers), step, 5, 2, cluster_of_gpus("8xH100", nodes))
    assert waiting == pytest.approx(8 * shape.parameters / (0.7 * (450e9 if nodes == 1 else 50e9)))


@pytest.mark.parametrize(("gpus", "nodes", "said"), [("6xL40S", 2, "6 whole models"), ("1xL40S", 12, "1 whole model")])
def test_the_models_that_a_node_holds_while_it_loads_are_counted(gpus: str, nodes: int, said: str):
    plan = plan_run(load_config(PAPER, ON_TWELVE), cluster_of_gpus(gpus, nodes))
    notes = next(stage for stage in plan.stages if stage.stage == "train").notes
    assert any(note.endswith(f" GiB of main memory: {said}") for note in notes)
