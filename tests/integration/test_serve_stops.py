"""`prm-ray serve` told to stop while clients ask, and where it cannot be reached."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from ray import serve
from starlette.requests import Request

from prm_ray.errors import UserError
from prm_ray.serve import server
from tests.ports import free_port
from tests.processes import wait_until
from tests.servedruns import Reply, call, make_run

PROBLEMS = [f"{number} + 45 - 8" for number in range(24)]
RESPONSES = [f"12 + 45 = 57\n57 - 8 = {number}\nAnswer: {number}" for number in range(8)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_those_it_let_in_and_turns_others_away(tmp_path: Path, number: signal.Signals) -> None:
    url, process = _begin(tmp_path)
    log = tmp_path / "log"
    try:
        _wait_for(log, process)
        with ThreadPoolExecutor(len(PROBLEMS)) as pool:
            asked = [pool.submit(_rewards, url, problem) for problem in PROBLEMS]
            while not any(each.done() for each in asked) and process.poll() is None:
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


def test_told_a_second_time_it_waits_for_no_request(tmp_path: Path) -> None:
    """That of a generator that never answers, for which Serve itself would wait as long as a request may take."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        url, process = _begin(tmp_path, f"serve.generator=http://127.0.0.1:{silent.getsockname()[1]}/v1")
        log = tmp_path / "log"
        try:
            _wait_for(log, process)
            messages = [{"role": "user", "content": "1 + 2"}]
            asked = pool.submit(call, f"{url}/v1/chat/completions", {"messages": messages})
            silent.accept()
            process.send_signal(signal.SIGINT)
            wait_until(lambda: "are answered first" in log.read_text() or process.poll() is not None, 240, "word of it")
            process.send_signal(signal.SIGINT)
            assert process.wait(240) in (0, 130)
        finally:
            if process.poll() is None:
                process.kill()
        with suppress(urllib.error.URLError, OSError):  # Serve's proxy may be gone already
            assert asked.result().status == 503
    assert "stopped before all requests were answered (KeyboardInterrupt)" in log.read_text()
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
    port = free_port()
    serve.start(http_options={"port": port})
    serve.run(Another.bind(), name="another", route_prefix="/another")
    try:
        with pytest.raises(UserError, match="does another Serve run on this cluster"):
            server.start(make_run(tmp_path))
        wait_until(lambda: serve.status().applications.keys() == {"another"}, 240, "end of what was begun")
        assert call(f"http://127.0.0.1:{port}/another").body == "here"
    finally:
        serve.shutdown()


def _rewards(url: str, problem: str) -> Reply | None:
    """None = the connection ended without an answer."""
    try:
        return call(f"{url}/v1/rewards", {"problem": problem, "responses": RESPONSES})
    except (urllib.error.URLError, OSError):
        return None


def _begin(folder: Path, *overrides: str) -> tuple[str, subprocess.Popen[bytes]]:
    """The server's address, and its process; what it says goes to `log`."""
    section = make_run(folder).serve
    words = [sys.executable, "-m", "prm_ray", "serve", str(folder / "run.toml"), f"run.dir={folder}"]
    with (folder / "log").open("w") as file:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        words += [f"serve.port={section.port}", *overrides]
        process = subprocess.Popen(words, stdout=file, stderr=file, env=env)
    return f"http://127.0.0.1:{section.port}", process


def _wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 600
    while time.monotonic() < give_up and process.poll() is None:
        if "serving at" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start (exit code {process.poll()}): {log.read_text()}")
