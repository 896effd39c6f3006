"""train as jobs of a cluster whose nodes hold one worker each: as many workers as there are give the same losses."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.tables import StageFolder
from tests.chaos.test_kill_train import read_metrics
from tests.clusters import SmallCluster, small_cluster
from tests.integration.test_submit import Client
from tests.processes import wait_until
from tests.tables_by_hand import finish_up_to_training, tiny_config

pytestmark = pytest.mark.slow
NUM_NODES = 3
SETTINGS = {"epochs": 10, "checkpoint_every": 3, "validation_fraction": 0.0, "lr": 5e-3}
NUM_STEPS = 50
TOLERANCE = 1e-4
"""Of the mean loss of a step, in float32: workers add the same numbers in another order."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    with small_cluster(NUM_NODES, cpus_each=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: SmallCluster, tmp_path_factory: pytest.TempPathFactory) -> Client:
    environment = os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address}
    return Client(tmp_path_factory.mktemp("client"), environment)


def run_to_train(client: Client, run_dir: Path, model: str, **train: Any) -> RunConfig:
    """A run with all but `train` done, and its config as `NAME.json` in the client's folder."""
    config = tiny_config(run_dir, model, train=SETTINGS | train)
    finish_up_to_training(config)
    (client.folder / f"{run_dir.name}.json").write_text(config.model_dump_json(by_alias=True))
    return config


def train(client: Client, run_dir: Path, *settings: str) -> list[dict[str, Any]]:
    done = client.run("submit", "train", f"{run_dir.name}.json", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert StageFolder(run_dir, "train").is_done()
    return read_metrics(StageFolder(run_dir, "train"))


def losses(lines: list[dict[str, Any]]) -> list[float]:
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def expected(client: Client, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of one worker."""
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    run_to_train(client, run_dir, tiny_model)
    found = losses(train(client, run_dir))
    assert found[0] - sum(found[-5:]) / 5 > 0.1, "nothing was learnt, so equal losses would say little"
    return found


def test_workers_on_two_nodes_give_the_losses_of_one(
    client: Client, expected: list[float], tiny_model: str, tmp_path: Path
):
    run_to_train(client, tmp_path / "ddp", tiny_model)
    lines = train(client, tmp_path / "ddp", "train.num_workers=2", "train.parallel=ddp")
    assert losses(lines) == pytest.approx(expected, abs=TOLERANCE)
    assert {line["num_workers"] for line in lines} == {2}


def test_a_checkpoint_of_two_sharded_workers_is_continued_by_one_and_by_three(
    client: Client, cluster: SmallCluster, expected: list[float], tiny_model: str, tmp_path: Path
):
    two = run_to_train(client, tmp_path / "two", tiny_model)
    folder = StageFolder(two.run.dir, "train")
    words = ["two.json", "train.num_workers=2", "train.parallel=fsdp"]
    waiting = client.start("submit", "train", *words, "--submission-id", "two")
    wait_until(lambda: len(read_metrics(folder)) >= NUM_STEPS // 3 or waiting.poll() is not None, 900, "third of it")
    stop_at_once(cluster, "two")
    assert client.run("stop", "two").returncode == 0
    waiting.communicate(timeout=900)
    begun = [line["step"] for line in read_metrics(folder)]
    assert begun[-1] < NUM_STEPS and not folder.is_done(), "it was through before it was stopped"
    for number in (1, 3):
        run_dir = tmp_path / f"on-{number}"
        shutil.copytree(two.run.dir, run_dir)
        (client.folder / f"{run_dir.name}.json").write_text(json.dumps(at(two, run_dir)))
        lines = train(client, run_dir, f"train.num_workers={number}", "train.parallel=fsdp")
        assert losses(lines) == pytest.approx(expected, abs=TOLERANCE)
        workers = [line["num_workers"] for line in lines]
        assert workers[0] == 2 and workers[-1] == number, "it began anew"
    lines = train(client, two.run.dir, *words[1:])
    assert losses(lines) == pytest.approx(expected, abs=TOLERANCE)


def stop_at_once(cluster: SmallCluster, job: str) -> None:
    """Training goes on while our command loads Ray, and on a slow machine it would be through."""
    auth = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    url = f"{cluster.address}/api/jobs/{job}/stop"
    with urllib.request.urlopen(urllib.request.Request(url, b"", auth, method="POST"), timeout=60):
        pass


def at(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    values = config.model_dump(mode="json", by_alias=True)
    return values | {"run": values["run"] | {"dir": str(run_dir)}}


def test_training_takes_the_workers_there_is_room_for_and_goes_on_with_those_that_are_left(
    client: Client, cluster: SmallCluster, expected: list[float], tiny_model: str, tmp_path: Path
):
    """The last test of this file: it costs the cluster a node."""
    run_to_train(client, tmp_path / "elastic", tiny_model)
    folder = StageFolder(tmp_path / "elastic", "train")
    settings = [f"train.num_workers={NUM_NODES + 1}", "train.min_workers=1", "train.parallel=fsdp"]
    waiting = client.start("submit", "train", "elastic.json", *settings)
    wait_until(lambda: len(read_metrics(folder)) >= NUM_STEPS // 3 or waiting.poll() is not None, 900, "third of it")
    cluster.kill_node(cluster.nodes[-1])
    out, err = waiting.communicate(timeout=600)
    assert waiting.returncode == 0, out + err
    lines = read_metrics(folder)
    assert losses(lines) == pytest.approx(expected, abs=TOLERANCE)
    workers = [line["num_workers"] for line in lines]
    assert NUM_NODES >= workers[0] > workers[-1] >= 1, workers
