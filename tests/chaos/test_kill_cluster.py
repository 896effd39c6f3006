"""SIGKILL in every stage of a run that is a cluster's job: of its workers, nodes, driver and supervisor, of the head.

Each run is killed once in each of its stages, at a random moment, and submitted again when its job has failed, or the
cluster is another one. What it makes must be what a run makes that nobody disturbed: the same rows, the same losses,
and nothing beside them.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from prm_ray.tables import StageFolder
from tests.chaosplans import CONFIG, JUDGE, NUM_RESPONSES, NUM_SCORED, STAGES, WITH_THE_JOB, Outcome, plan
from tests.chaosruns import ChaosRun
from tests.clusters import SmallCluster
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
NUM_KILLS = int(os.environ.get("PRM_RAY_CHAOS_KILLS", "4"))  # 32 by `make chaos`
SEED = int(os.environ.get("PRM_RAY_CHAOS_SEED", "605"))
ROUNDS = plan(NUM_KILLS, random.Random(SEED))
RESPONSE = ("prompt_id", "sample_index")
KEYS = {**dict.fromkeys(("generate", "label", "reference", "score"), RESPONSE), "rerank": ("prompt_id", "method", "n")}
"""Table -> columns by which each of its rows is another one."""
CURVES = ("warmup", "train")
OUTCOMES: list[Outcome] = []


@pytest.fixture(scope="module")
def client(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is sent."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "run.toml").write_text(CONFIG.format(model=tiny_model))
    (folder / "sent_along.py").write_text(JUDGE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(cluster: SmallCluster, client: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = ChaosRun(tmp_path_factory.mktemp("undisturbed") / "run", "run run.toml", client, cluster)
    run.go_on(run.has_ended, "end of the undisturbed run")
    assert len(table(run.folder, "label")) == NUM_RESPONSES and len(table(run.folder, "score")) == NUM_SCORED
    assert [len(curve(run.folder, stage)) for stage in CURVES] == [STAGES[stage].size for stage in CURVES]
    return run.folder


@pytest.mark.parametrize("number", range(len(ROUNDS)))
def test_a_run_that_is_killed_in_its_stages_makes_what_an_undisturbed_one_does(
    number: int, cluster: SmallCluster, client: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Rounds take turns: the command submits a job again that failed, or somebody gives it once more."""
    rng = random.Random(f"{SEED} {number}")
    run = ChaosRun(tmp_path / "run", "run run.toml", client, cluster, retries=20 if number % 2 else 0)
    for kill in ROUNDS[number]:
        OUTCOMES.append(run.suffer(kill, rng))
        with capsys.disabled():
            print(f"\nseed {SEED}, round {number}: {OUTCOMES[-1]}", end="", flush=True)
    run.go_on(run.has_ended, "end of the run")
    run.join()
    wait_until(lambda: not run.left(), 240, "end of all processes of jobs, and of nodes without a head")
    cluster.clear_lost()
    check_same(run.folder, undisturbed)
    assert leftovers(run.folder) == []
    check_told(run)


def test_the_kills_fell_into_the_stages():
    """A kill behind the end of its stage tries little; a seed has few of them."""
    assert len(OUTCOMES) == NUM_KILLS
    over = [str(outcome) for outcome in OUTCOMES if outcome.was_over]
    assert len(over) <= NUM_KILLS // 4, over
    tried = {(outcome.kill.stage, outcome.kill.victim) for outcome in OUTCOMES}
    assert len(tried) == min(NUM_KILLS, sum(len(stage.victims) for stage in STAGES.values()))


def test_what_does_not_end_the_job_needs_nobody():
    others = [outcome for outcome in OUTCOMES if outcome.kill.victim not in WITH_THE_JOB]
    assert all(outcome.went_on_by_itself for outcome in others), list(map(str, others))


def check_told(run: ChaosRun) -> None:
    """A command whose cluster lost its head ends with one line that says what to do."""
    codes, errors = run.deserted(), run.errors()
    told = [line for line in errors if "submit the same again" in line]
    assert set(codes) <= {0, 1} and (run.retries or len(told) == codes.count(1)), (codes, errors)
    unanswered = [line for line in errors if line not in told]  # by a dashboard that is alive, and very busy
    assert all("answer" in line or "nothing within" in line for line in unanswered), errors
    assert "Traceback" not in run.log.read_text()


def check_same(run_dir: Path, expected_dir: Path) -> None:
    """Each row once, and every column as in the other run; every step of training once, with the same loss."""
    assert all(StageFolder(run_dir, stage).is_done() for stage in STAGES)
    for stage, names in KEYS.items():
        rows, expected = table(run_dir, stage), table(expected_dir, stage)
        assert len({tuple(row[name] for name in names) for row in rows}) == len(rows) == len(expected), stage
        columns = {name: [row[name] for row in rows] == [row[name] for row in expected] for name in expected[0]}
        assert all(columns.values()), f"{stage}: {[name for name, is_same in columns.items() if not is_same]} differ"
    for stage in CURVES:
        assert curve(run_dir, stage) == curve(expected_dir, stage), stage
    assert headline(run_dir) == headline(expected_dir)


def table(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    return list(StageFolder(run_dir, stage).rows())


def curve(run_dir: Path, stage: str) -> list[tuple[int, float, float]]:
    lines = (StageFolder(run_dir, stage).path / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, lines)]


def headline(run_dir: Path) -> str:
    return json.loads((StageFolder(run_dir, "evaluate").path / "report.json").read_text())["headline"]


def leftovers(run_dir: Path) -> list[Path]:
    """What a finished run has no use for: workspaces of attempts, unfinished files."""
    return [*run_dir.rglob("attempt-*"), *run_dir.rglob(".*"), *run_dir.rglob("*.tmp")]
