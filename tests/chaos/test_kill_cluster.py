"""SIGKILL in every stage of a run that is a cluster's job: of its workers, of nodes, of its driver, of its supervisor.

Each run is killed once in each of its stages, at a random moment, and submitted again when its job has failed. What it
makes must be what a run makes that nobody disturbed: the same rows, the same losses, and nothing beside them.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prm_ray.tables import StageFolder
from tests.chaosruns import CONFIG, JUDGE, NUM_RESPONSES, NUM_SCORED, SIZES, VICTIMS, ChaosRun, Outcome, plan
from tests.clusters import SmallCluster, small_cluster
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NUM_KILLS = int(os.environ.get("PRM_RAY_CHAOS_KILLS", "4"))  # 32 by `make chaos`
SEED = int(os.environ.get("PRM_RAY_CHAOS_SEED", "600"))
ROUNDS = plan(NUM_KILLS, random.Random(SEED))
RESPONSE = ("prompt_id", "sample_index")
KEYS = {**dict.fromkeys(("generate", "label", "reference", "score"), RESPONSE), "rerank": ("prompt_id", "method", "n")}
"""Table -> columns by which each of its rows is another one."""
CURVES = ("warmup", "train")
OUTCOMES: list[Outcome] = []


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    with small_cluster() as cluster:
        yield cluster
    assert cluster.num_processes() == 0


@pytest.fixture(scope="module")
def client(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is sent."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "run.toml").write_text(CONFIG.format(model=tiny_model))
    (folder / "sent_along.py").write_text(JUDGE)
    return folder


def chaos_run(folder: Path, cluster: SmallCluster, client: Path, retries: int = 0) -> ChaosRun:
    log = folder.with_suffix(".log")
    command = [sys.executable, "-m", "prm_ray", "submit", "run", "run.toml", f"run.dir={folder}"]
    command += [f"--retries={retries}"] if retries else []

    def submit() -> subprocess.Popen[bytes]:
        environment = os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address}
        with log.open("ab") as file:
            return subprocess.Popen(command, cwd=client, env=environment, stdout=file, stderr=file)

    return ChaosRun(folder, log, cluster, submit)


@pytest.fixture(scope="module")
def undisturbed(cluster: SmallCluster, client: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = chaos_run(tmp_path_factory.mktemp("undisturbed") / "run", cluster, client)
    run.go_on(run.has_ended, "end of the undisturbed run")
    assert len(table(run.folder, "label")) == NUM_RESPONSES and len(table(run.folder, "score")) == NUM_SCORED
    assert [len(curve(run.folder, stage)) for stage in CURVES] == [SIZES[stage] for stage in CURVES]
    return run.folder


@pytest.mark.parametrize("number", range(len(ROUNDS)))
def test_a_run_that_is_killed_in_its_stages_makes_what_an_undisturbed_one_does(
    number: int, cluster: SmallCluster, client: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Rounds take turns: the command submits a job again that failed, or somebody gives it once more."""
    rng = random.Random(f"{SEED} {number}")
    run = chaos_run(tmp_path / "run", cluster, client, retries=20 if number % 2 else 0)
    for kill in ROUNDS[number]:
        OUTCOMES.append(run.suffer(kill, rng))
        with capsys.disabled():
            print(f"\nseed {SEED}, round {number}: {OUTCOMES[-1]}", end="", flush=True)
    run.go_on(run.has_ended, "end of the run")
    run.join_nodes()
    check_same(run.folder, undisturbed)
    assert leftovers(run.folder) == []
    wait_until(lambda: not run.left(), 120, "end of all processes of jobs")


def test_the_kills_fell_into_the_stages():
    """A kill behind the end of its stage tries little; a seed has few of them."""
    assert len(OUTCOMES) == NUM_KILLS
    over = [str(outcome) for outcome in OUTCOMES if outcome.was_over]
    assert len(over) <= NUM_KILLS // 4, over
    tried = {(outcome.kill.stage, outcome.kill.victim) for outcome in OUTCOMES}
    assert len(tried) == min(NUM_KILLS, sum(map(len, VICTIMS.values())))


def check_same(run_dir: Path, expected_dir: Path) -> None:
    """Each row once, and every column as in the other run; every step of training once, with the same loss."""
    assert all(StageFolder(run_dir, stage).is_done() for stage in SIZES)
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
