"""SIGKILL in stages that are cluster's jobs of their own: step_label, search, and generate with a real vLLM engine.

Each is killed several times at work, by what a whole run does not have: engines, scorers, an engine's own process.
"""

import os
import random
from pathlib import Path

import pytest

from prm_ray.config import RunConfig
from prm_ray.tables import StageFolder
from tests.chaosplans import WITH_THE_JOB, Stage, plan_of_one
from tests.chaosruns import ChaosRun
from tests.clusters import SmallCluster
from tests.processes import wait_until
from tests.searchruns import check_whole, run_to_kill
from tests.stageruns import run_to_label_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
IS_WHOLE = "PRM_RAY_CHAOS_KILLS" in os.environ
NUM_KILLS = int(os.environ.get("PRM_RAY_CHAOS_KILLS", "1"))  # in each stage; all there are by `make chaos`
SEED = int(os.environ.get("PRM_RAY_CHAOS_SEED", "605"))
NUM_PROBLEMS = 32
STEP_LABEL = Stage(NUM_PROBLEMS, {"engine's actor": "ray::MapWorker"}, ("node", "driver"))
_POOLS = {"generator": "ray::GeneratorActor", "scorer": "ray::ScorerActor"}
SEARCH = Stage(2 * NUM_PROBLEMS, _POOLS, ("node", "driver", "head"))
GENERATE = Stage(12, {"engine's actor": "ray::MapWorker", "engine": "VLLM::EngineCore"}, ("node",))
VLLM_CONFIG = """
[model]
name = "{model}"
[prompt]
max_tokens = 64
[problems]
num_train = 8
num_test = 4
[generate]
backend = "vllm"
num_samples = 2
max_tokens = 16
problems_per_shard = 1
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is sent."""
    return tmp_path_factory.mktemp("client")


def stage_run(config: RunConfig, name: str, stage: Stage, client: Path, cluster: SmallCluster) -> ChaosRun:
    file = f"{config.run.dir.parent.name}-{name}.json"
    (client / file).write_text(config.model_dump_json(by_alias=True))
    return ChaosRun(config.run.dir, f"{name} {file}", client, cluster, {name: stage}, retries=20)


def suffer(run: ChaosRun, name: str, capsys: pytest.CaptureFixture) -> None:
    """The stage's victims killed at work, in any order, and the run gone on with to its end."""
    rng = random.Random(f"{SEED} {name}")
    victims = run.stages[name].victims
    chosen = rng.sample(victims, min(NUM_KILLS, len(victims)))
    for kill in plan_of_one(name, run.stages[name], chosen, rng):
        outcome = run.suffer(kill, rng, to_end=False)
        with capsys.disabled():
            print(f"\nseed {SEED}: {outcome}", end="", flush=True)
        assert not outcome.was_over and (outcome.went_on_by_itself or kill.victim in WITH_THE_JOB), str(outcome)
    run.go_on(run.has_ended, f"end of {name}")
    run.join()
    assert StageFolder(run.folder, name).is_done()
    wait_until(lambda: not run.left(), 240, "end of all processes of jobs, and of nodes without a head")
    run.cluster.clear_lost()


def test_step_labels_of_a_killed_job_are_those_of_an_undisturbed_one(
    cluster: SmallCluster, client: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    runs = [
        stage_run(
            run_to_label_steps(tmp_path / name, tiny_model, NUM_PROBLEMS), "step_label", STEP_LABEL, client, cluster
        )
        for name in ("undisturbed", "killed")
    ]
    runs[0].go_on(runs[0].has_ended, "end of the undisturbed job")
    suffer(runs[1], "step_label", capsys)
    expected, found = (list(StageFolder(run.folder, "step_label").rows()) for run in runs)
    assert len(expected) == 4 * NUM_PROBLEMS and all(row["step_labels"] is not None for row in expected)
    assert found == expected


def test_a_killed_search_has_every_candidate_once(
    cluster: SmallCluster, client: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """What is sampled together depends on the moment, so two searches of tiny models are never equal."""
    config = run_to_kill(tmp_path / "run", tiny_model, NUM_PROBLEMS, problems_per_part=1)
    suffer(stage_run(config, "search", SEARCH, client, cluster), "search", capsys)
    check_whole(StageFolder(config.run.dir, "search"), NUM_PROBLEMS)


@pytest.mark.skipif(not IS_WHOLE, reason="starts an engine again and again: make chaos does it")
def test_a_vllm_engine_that_is_lost_comes_back(
    cluster: SmallCluster, client: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The engine's own process, the actor that holds it, or the node of both."""
    pytest.importorskip("vllm")
    (client / "vllm.toml").write_text(VLLM_CONFIG.format(model=demo_model))
    run = ChaosRun(tmp_path / "run", "generate vllm.toml", client, cluster, {"generate": GENERATE})
    suffer(run, "generate", capsys)
    rows = list(StageFolder(run.folder, "generate").rows())
    keys = {(row["prompt_id"], row["sample_index"]) for row in rows}
    assert len(rows) == len(keys) == 12 * 2 and all(row["error"] is None for row in rows)
