"""`prm-ray serve` told to stop while clients ask, and where it cannot be reached."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray import serve
from starlette.requests import Request

from prm_ray.errors import UserError
from prm_ray.serve import server
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
        process = subprocess.Popen([*words, f"serve.port={section.port}"], stdout=file, stderr=file, env=env)
    try:
        _wait_for(log, process)
        with ThreadPoolExecutor(len(PROBLEMS)) as pool:
            asked = [pool.submit(_rewards, url, problem) for problem in PROBLEMS]
            while not any(each.done() for each in asked):
                time.sleep(0.01)
            process.send_signal(number)
            replies = [each.result() for each in asked]
        assert {reply.status for reply in replies if reply is not None} <= {200, 503}
        assert [reply for reply in replies if reply is None] == []
        for reply in replies:
            assert reply is not None
            if reply.status == 200:
                assert len(reply.body["results"]) == len(RESPONSES)
            else:
                assert reply.body["error"]["type"] == "stopping" and int(reply.headers["retry-after"]) >= 1
        assert process.wait(240) in (0, 130)  # longer than requests may take: a busy machine is no failure
    finally:
        if process.poll() is None:
            process.kill()
    assert "Traceback" not in log.read_text()


@serve.deployment
class Another:
    """Somebody else's application."""

    def __call__(self, request: Request) -> str:
        return '"here"'


def test_on_a_cluster_whose_serve_listens_elsewhere_it_leaves_that_as_it_was(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ANSWERS_WITHIN_SECONDS", 2)
    port = server.free_port()
    serve.start(http_options={"port": port})
    serve.run(Another.bind(), name="another", route_prefix="/another")
    try:
        with pytest.raises(UserError, match="does another Serve run on this cluster"):
            server.start(make_run(tmp_path))
        assert serve.status().applications.keys() == {"another"}
        assert call(f"http://127.0.0.1:{port}/another").body == "here"
    finally:
        serve.shutdown()


def _rewards(url: str, problem: str) -> Reply | None:
    """None = the connection ended without an answer."""
    try:
        return call(f"{url}/v1/rewards", {"problem": problem, "responses": RESPONSES})
    except (urllib.error.URLError, OSError):
        return None


def _wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and process.poll() is None:
        if "serving at" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start (exit code {process.poll()}): {log.read_text()}")
