"""`prm-ray serve` as a process of its own, told to stop while clients ask."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servedruns import Reply, call, make_run

PROBLEMS = [f"{number} + 45 - 8" for number in range(24)]
RESPONSES = [f"12 + 45 = 57\n57 - 8 = {number}\nAnswer: {number}" for number in range(8)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_those_it_let_in_and_turns_others_away(tmp_path: Path, number: signal.Signals) -> None:
    section = make_run(tmp_path).serve
    url = f"http://127.0.0.1:{section.port}"
    words = [sys.executable, "-m", "prm_ray.cli", "serve", str(tmp_path / "run.toml"), f"run.dir={tmp_path}"]
    log = tmp_path / "log"
    with log.open("w") as file:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        server = subprocess.Popen([*words, f"serve.port={section.port}"], stdout=file, stderr=file, env=env)
    try:
        _wait_for(log, server)
        with ThreadPoolExecutor(len(PROBLEMS)) as pool:
            asked = [pool.submit(_rewards, url, problem) for problem in PROBLEMS]
            while not any(each.done() for each in asked):
                time.sleep(0.01)
            server.send_signal(number)
            replies = [each.result() for each in asked]
        assert {reply.status for reply in replies if reply is not None} <= {200, 503}
        assert [reply for reply in replies if reply is None] == []
        for reply in replies:
            assert reply is not None
            if reply.status == 200:
                assert len(reply.body["results"]) == len(RESPONSES)
            else:
                assert reply.body["error"]["type"] == "stopping" and int(reply.headers["retry-after"]) >= 1
        assert server.wait(60) in (0, 130)
    finally:
        if server.poll() is None:
            server.kill()
    assert "Traceback" not in log.read_text()


def _rewards(url: str, problem: str) -> Reply | None:
    """None = the connection ended without an answer."""
    try:
        return call(f"{url}/v1/rewards", {"problem": problem, "responses": RESPONSES})
    except (urllib.error.URLError, OSError):
        return None


def _wait_for(log: Path, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and server.poll() is None:
        if "serving at" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start (exit code {server.poll()}): {log.read_text()}")
