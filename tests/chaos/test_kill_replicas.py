"""SIGKILL of the server's replicas while clients ask: right rewards or a status worth another try, nothing else."""

from pathlib import Path

import pytest

from benchmarks.serving_faults import kills
from prm_ray.scorer import Scorer
from prm_ray.tables import StageFolder
from tests.servedruns import make_run


def test_clients_with_retries_see_no_failure_and_no_wrong_reward(tmp_path: Path) -> None:
    config = make_run(tmp_path, num_replicas=2)
    scorer = Scorer.from_pretrained(StageFolder(tmp_path, "train").path, dtype="float32")
    asked = [(f"{number} + 45 - 8", [f"{number} + 45 = 57\n57 - 8 = 49", "Answer: 1"]) for number in range(400)]
    expected = [[each.rewards["sum"] for each in scorer.score(*one)] for one in asked]
    seen = kills(config, asked, expected, between=2.0)
    assert seen["killed"] >= 2, "nothing was tried"
    assert {key: seen[key] for key in ("right", "wrong", "zero", "failed")} == {
        "right": len(asked),
        "wrong": 0,
        "zero": 0,
        "failed": 0,
    }
    assert set(seen["statuses"]) <= {"200", "503"}


@pytest.fixture(autouse=True)
def _own_ray():
    """The server's Ray ends with the test: a later one may want other settings."""
    yield
    import ray

    ray.shutdown()
