"""The verbs submit, status, stop and logs as a user meets them, where no cluster is."""

import http.server
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray._private import services
from ray.exceptions import RpcError
from ray.job_submission import JobStatus

from prm_ray.cli import main
from prm_ray.submitting.client import find
from prm_ray.submitting.status import one_job, stage_in, table
from tests.unit.test_cli import loaded, only_error, prm_ray


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what a command puts there is gone afterwards
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('[run]\ndir = "/shared/run"\n')
    return "run.toml"


@pytest.fixture
def asked_for() -> Iterator[tuple[str, list[str]]]:
    """A web server that is no Ray dashboard, and the paths it was asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that ends with bad input."""
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("prm-ray: error: ")


def test_an_address_where_nobody_listens_is_one_line_at_once_without_loading_ray(config: str):
    with socket.socket() as probe:  # bound, but it does not listen
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        result = prm_ray("submit", "run", config, "--address", url)
    assert result.returncode == 2
    assert only_error(result).startswith(f"no cluster answers at {url} (Connection refused): --address (or RAY_API_S")
    assert not {"torch", "ray"} & set(loaded(result))


def test_an_address_that_never_answers_is_given_up_in_seconds(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        line = fails(capsys, "status", "--address", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "(nothing within 15 s)" in line and time.monotonic() - start < 60


def test_what_is_no_ray_dashboard_is_told_apart(asked_for: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]):
    line = fails(capsys, "status", "--address", asked_for[0])
    assert line.startswith(f"what answers at {asked_for[0]} is no Ray dashboard")


def test_the_address_comes_from_the_variables_of_ray_if_none_is_given(
    asked_for: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert "no cluster answers at http://127.0.0.1:1 " in fails(capsys, "status")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", asked_for[0])
    assert "is no Ray dashboard" in fails(capsys, "status")
    assert "no cluster answers at http://127.0.0.1:1 " in fails(capsys, "status", "--address", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--submission-id", "a b/c"), "--submission-id: must be of letters, digits, '.', '_' and '-', and begin with"),
        (("--entrypoint-num-cpus", "-3"), "--entrypoint-num-cpus: must be a number of at least 0 (got '-3')"),
        (("--entrypoint-num-gpus", "nan"), "--entrypoint-num-gpus: must be a number of at least 0 (got 'nan')"),
        (("--address", ""), "--address '' is empty: --address (or RAY_API_SERVER_ADDRESS) must be a head node's"),
    ],
)
def test_what_no_job_can_have_is_refused_before_anything_is_sent(
    config: str, words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert message in fails(capsys, "submit", "run", config, *words)


def test_an_address_that_speaks_no_http_may_be_the_clusters_own(capsys: pytest.CaptureFixture[str]):
    """As RAY_ADDRESS often is: Ray is then asked for the dashboard. With http:// in front it is a mistake."""

    class Closes(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"\x00\x00\x18\x04 as gRPC begins\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert find(address) == address
        assert "is no Ray dashboard" in fails(capsys, "status", "--address", f"http://{address}")
        server.shutdown()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Mock(return_value=set()), "Could not find any running Ray instance"),
        (Mock(side_effect=RpcError("Timed out while waiting for GCS", rpc_code=4)), "Timed out while waiting for GCS"),
    ],
)
def test_auto_where_no_ray_answers_is_one_line_with_what_an_address_looks_like(
    found: Mock, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: None)
    monkeypatch.setattr(services, "find_gcs_addresses", found)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert fails(capsys, "status") == (
        f"RAY_ADDRESS 'auto' leads to no dashboard (does not answer: {reason}): --address (or RAY_API_SERVER_ADDRESS) "
        "must be a head node's dashboard, such as http://HEAD:8265, which `ray start --head` prints"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "run.toml", "train.betaa=1"], "train.betaa: unknown key"),
        (["run", "nowhere.toml"], "config file 'nowhere.toml' does not exist"),
        (["run", "run.toml", "run.dir=runs/x"], "run.dir 'runs/x' must be an absolute path on storage"),
        (["run", "run.toml", "problems.train=x.jsonl"], "problems.train 'x.jsonl' is not in the working folder"),
        (["train", "run.toml", "--fresh=score"], "--fresh score: train redoes its own stage only"),
        (["run", "run.toml", "--fresh=nothing"], "invalid choice: 'nothing'"),
        (["run", "run.toml", "--adress", "x"], "unrecognized arguments: --adress"),
        (["run", "run.toml", "--env", "NOT_SET_ANYWHERE"], "--env 'NOT_SET_ANYWHERE' must be KEY=VALUE, or a variable"),
        (["run", "run.toml", "--entrypoint-label", "gpu"], "--entrypoint-label 'gpu' must be KEY=VALUE"),
        (["run", "run.toml", "--retries", "-1"], "argument --retries: must be a number of at least 0 (got '-1')"),
        (["run", "run.toml", "--working-dir", "nowhere"], "--working-dir 'nowhere' must be a folder"),
        (["train", "run.toml", "--chain"], "--chain is for run, and waits"),
        (["run", "run.toml", "--chain", "--no-wait"], "--chain is for run, and waits"),
        (["run", "run.toml", "--retries", "1", "--no-wait"], "--retries needs to wait for the job"),
        (["demo"], "'demo' is no verb for a cluster; submit takes run, warmup,"),
        ([], "no verb; submit takes run, warmup,"),
    ],
)
@pytest.mark.usefixtures("config")
def test_a_mistake_ends_before_the_cluster_is_asked(
    words: list[str], message: str, asked_for: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
):
    assert message in fails(capsys, "submit", *words, "--address", asked_for[0])
    assert asked_for[1] == []


@pytest.mark.parametrize("verb", ["submit", "status", "stop", "logs"])
def test_help_has_an_example_and_says_where_the_cluster_is_found(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"\n  prm-ray {verb} " in text and "RAY_API_SERVER_ADDRESS" in text and "RAY_AUTH_TOKEN" in text


def job(**facts: Any) -> SimpleNamespace:
    plain = {"submission_id": "x", "status": JobStatus.RUNNING, "entrypoint": "python x.py", "metadata": None}
    plain |= {"message": None, "start_time": 1_000, "end_time": None, "driver_exit_code": None}
    return SimpleNamespace(**plain | facts)


OURS = {"prm_ray_verb": "run", "prm_ray_folder": "/shared/run", "prm_ray_words": "run.toml train.beta=1"}


def test_the_table_has_our_jobs_with_their_folders_and_others_with_their_commands():
    ours = job(
        submission_id="run-1", metadata=OURS, status=JobStatus.SUCCEEDED, start_time=43_200_000, end_time=46_800_000
    )
    lines = table([ours, job(start_time=43_200_000)]).splitlines()
    assert [line.split()[0] for line in lines] == ["ID", "run-1", "x"]
    assert lines[1].split()[1:3] == ["SUCCEEDED", "run"] and lines[1].endswith("/shared/run")
    assert "(1 h 0 min)" in lines[1]
    assert "python x.py" in lines[2] and "since 1970-01-01" in lines[2]


def test_one_job_tells_its_stage_and_why_it_failed():
    log = "14:00:00 generate  starts in /a\n14:03:00 generate  done in 3.0 s: 1 rows\n14:03:01 label     starts in /b\n"
    message = "Job entrypoint command failed with exit code 2, last available logs (truncated):\nlong"
    failed = job(metadata=OURS, status=JobStatus.FAILED, end_time=9_000, driver_exit_code=2, message=message)
    text = one_job(failed, log + "\n\x1b[36mprm-ray: error: bad\x1b[0m\n")
    facts = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert facts["stage"] == "label" and facts["message"] == "Job entrypoint command failed with exit code 2"
    assert facts["last"] == "line  prm-ray: error: bad"
    assert facts["work"] == "run run.toml train.beta=1" and facts["folder"] == "/shared/run"
    assert stage_in("14:00:00 nothing yet\n") is None
