"""SIGKILL of the driver, generators and scorers of a search at random: it ends with every candidate in the table once.

Kills are spread over the search by how much of it is done, so a fast machine has as many as a slow one.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from prm_ray.config import RunConfig
from prm_ray.tables import StageFolder
from tests.processes import MARK, command_line, marked, wait_for_end, wait_until
from tests.searchruns import check_whole, run_to_kill

NUM_KILLS = min(9, int(os.environ.get("PRM_RAY_CHAOS_KILLS", "6")))  # 9 by `make chaos`
BETWEEN_KILLS = 6
"""Problems."""
NUM_PROBLEMS = BETWEEN_KILLS * (NUM_KILLS + 3)
SEED = 7
ACTORS = {"generator": "ray::GeneratorActor", "scorer": "ray::ScorerActor"}


def start(config: RunConfig, mark: str, log: Path) -> subprocess.Popen[bytes]:
    path = config.run.dir / "config.json"
    path.write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    command = [sys.executable, "-m", "prm_ray.cli", "search", str(path)]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=os.environ | {MARK: mark}, stdout=file, stderr=file)


def num_searched(folder: StageFolder) -> int:
    return len({row["prompt_id"] for row in folder.rows(["prompt_id"])})


def wait_for_problem(folder: StageFolder, driver: subprocess.Popen[bytes], number: int) -> None:
    wait_until(lambda: num_searched(folder) > number or driver.poll() is not None, 480, f"problem {number}")


def actors(mark: str, kind: str) -> list[psutil.Process]:
    found = [process for process in marked(mark) if command_line(process).startswith(ACTORS[kind])]
    return sorted(found, key=lambda process: process.pid)


def kill_actor(mark: str, kind: str, rng: random.Random) -> None:
    found: list[psutil.Process] = []

    def killed() -> bool:
        found[:] = actors(mark, kind)
        if found:
            with suppress(psutil.NoSuchProcess):
                rng.choice(found).kill()
                return True
        return False

    wait_until(killed, 240, f"{kind} to kill")


def test_a_search_that_is_killed_again_and_again_ends_whole(tmp_path: Path, tiny_model: str, mark: str):
    config = run_to_kill(tmp_path / "run", tiny_model, NUM_PROBLEMS, problems_per_part=2)
    folder, rng, log = StageFolder(config.run.dir, "search"), random.Random(SEED), tmp_path / "log"
    driver = start(config, mark, log)
    victims: Counter[str] = Counter()
    for number in range(NUM_KILLS):
        wait_for_problem(folder, driver, BETWEEN_KILLS * number)
        assert driver.poll() is None, log.read_text()[-3000:]
        victims[victim := rng.choice(["driver", "generator", "generator", "scorer", "scorer"])] += 1
        if victim != "driver":
            kill_actor(mark, victim, rng)
            continue
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        wait_for_end(mark, 360)
        driver = start(config, mark, log)
    assert driver.wait(timeout=800) == 0, log.read_text()[-3000:]
    assert sum(victims.values()) == NUM_KILLS and min(victims.values()) >= 1
    check_whole(folder, NUM_PROBLEMS)
