"""Jobs of a cluster of three nodes that lets in only who has its token, through the command line as users have it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from prm_ray.config import load_config
from prm_ray.tables import FOLDERS, StageFolder
from tests.clusters import SmallCluster
from tests.ports import free_port
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
RAY_JOB = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir"]
pytestmark = pytest.mark.slow
CONFIG = """
[model]
name = "{model}"
dtype = "float32"
[problems]
train = "problems.jsonl"
test = "held_out.jsonl"
[generate]
backend = "transformers"
num_samples = 2
max_tokens = 8
problems_per_shard = 4
[label]
judge = "sent_along:judge"
timeout_seconds = 120
[reference]
step_rule = "newline"
[train]
lr = 1e-3
batch_size = 8
validation_fraction = 0.0
[rerank]
sizes = [1, 2]
"""
SENT_ALONG = """
import asyncio, os, pathlib
from prm_ray.stages.sampling import Sample

def judge(text: str, gold: str) -> bool:
    return len(text) % 2 == 0

class Broken:
    def __init__(self, options):
        self.options = options

    async def sample(self, prompts, seeds, max_tokens=None, decoding=None):
        if len(prompts) == 1:
            await asyncio.sleep(1)  # so that the line that says so has time to reach the job's log
        raise RuntimeError("the engine is broken")

class Chatty(Broken):
    async def sample(self, prompts, seeds, max_tokens=None, decoding=None):
        print("what a worker of generate says")
        print("it has", self.options.threads.count(), "threads")
        await asyncio.sleep(2)  # so that Ray has time to bring it to the job's log
        return [[Sample(tokens=[65], logprobs=[-1.0], finish_reason="stop")] * 2 for _ in prompts]

class DiesOnce(Chatty):
    async def sample(self, prompts, seeds, max_tokens=None, decoding=None):
        died = pathlib.Path(os.environ["DIED"])
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), 9)
        return await super().sample(prompts, seeds)
"""

CLAIMS = """
import sys
import ray
from ray.util import list_named_actors
from prm_ray.config import RunConfig
from prm_ray.serve.claim import _claims, claim_cluster, give_up_claim
from tests.processes import wait_until

ray.init()
node = ray.get_runtime_context().get_node_id()
for _ in range(6):
    claim_cluster(RunConfig())
    place = _claims[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    with open(sys.argv[1], "a") as file:
        file.write("here " if ray.get(place) == node else "elsewhere ")
    give_up_claim()
    wait_until(lambda: "prm_ray_server" not in str(list_named_actors(all_namespaces=True)), 60, "end of the claim")
"""

Submitted = tuple[Path, subprocess.CompletedProcess[str]]
"""The folder of a run, and what the command that submitted it said."""


@dataclass(frozen=True)
class Client:
    """Somebody with a folder of their own, who reaches the cluster from there."""

    folder: Path
    environment: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "prm_ray", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **pipes)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=1800)
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="module")
def client(cluster: SmallCluster, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("client")
    (folder / "run.toml").write_text(CONFIG.format(model=tiny_model))
    (folder / "sent_along.py").write_text(SENT_ALONG)
    for name, first, count in (("problems", 1, 8), ("held_out", 100, 4), ("many", 1000, 4000)):
        rows = [f'{{"problem": "{n} + 1", "answer": "{n + 1}"}}\n' for n in range(first, first + count)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return Client(folder, os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address})


@pytest.fixture(scope="module")
def submitted(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """A whole run as one job, and what the command said."""
    run_dir = tmp_path_factory.mktemp("shared") / "run"
    return run_dir, client.run("submit", "run", "run.toml", f"run.dir={run_dir}", "--submission-id", "whole")


def test_a_whole_run_is_a_job_whose_log_is_shown_and_whose_tables_are_there(submitted: Submitted, client: Client):
    run_dir, command = submitted
    assert command.returncode == 0, command.stdout + command.stderr
    assert "evaluate  done in" in command.stdout and "job whole succeeded after" in command.stderr
    assert "training worker group" not in command.stdout, "Ray Train's lines of how it goes"
    stages = load_config(client.folder / "run.toml").stages()
    assert all(StageFolder(run_dir, stage).is_done() for stage in stages)
    labels = list(StageFolder(run_dir, "label").rows(["text", "correct"]))
    assert len(labels) == 24 and all(row["correct"] == (len(row["text"]) % 2 == 0) for row in labels)
    assert re.search(r"whole +SUCCEEDED +run +ended .*" + str(run_dir), client.run("status").stdout)


def test_the_exit_code_of_a_job_is_that_of_the_command(client: Client, tmp_path: Path):
    """2 where the job finds its input missing; 1 where the work itself breaks."""
    bad = client.run("submit", "train", "run.toml", f"run.dir={tmp_path / 'empty'}")
    assert bad.returncode == 2, bad.stderr
    assert "run the generate stage first" in bad.stdout and "failed with exit code 2" in bad.stderr
    words = ["run.toml", f"run.dir={tmp_path / 'broken'}", "generate.backend=sent_along:Broken"]
    broken = client.run("submit", "generate", *words)
    assert broken.returncode == 1, broken.stderr
    lines = broken.stdout.splitlines()
    assert lines[-1] == "prm-ray: error: no prompt was answered: RuntimeError: the engine is broken"
    assert "asking for one prompt after the other" in broken.stdout, "a worker's own line"
    assert not [line for line in lines if "ERROR" in line], "Ray says it too"


def test_a_worker_that_dies_is_said_once_and_the_stage_goes_on(client: Client, tmp_path: Path):
    words = ["run.toml", f"run.dir={tmp_path / 'run'}", "generate.backend=sent_along:DiesOnce"]
    done = client.run("submit", "generate", *words, "--env", f"DIED={tmp_path / 'died'}")
    assert done.returncode == 0 and (tmp_path / "died").exists(), done.stdout + done.stderr
    assert done.stdout.count("A worker died or was killed") == 1
    assert "retries remaining" not in done.stdout


_CORES = min(8, len(os.sched_getaffinity(0)))  # the cluster has two nodes of 4


@pytest.mark.parametrize(("said", "count"), [([], _CORES), (["--env", "OMP_NUM_THREADS=7"], 7)])
def test_an_engine_has_the_cores_of_its_machine_not_the_one_thread_of_ray(
    client: Client, tmp_path: Path, said: list[str], count: int
) -> None:
    words = ["run.toml", f"run.dir={tmp_path / 'run'}", "generate.backend=sent_along:Chatty"]
    command = client.run("submit", "generate", *words, *said)
    assert f"it has {count} threads" in command.stdout, command.stdout + command.stderr


def test_a_servers_log_has_no_lines_of_other_jobs(submitted: Submitted, client: Client, tmp_path: Path):
    """Ray Serve asks Ray for the lines of all jobs."""
    words = ["run.toml", f"run.dir={submitted[0]}", f"serve.port={free_port()}"]
    client.run("submit", "serve", *words, "--no-wait", "--submission-id", "server")
    wait_until(lambda: "serving at" in client.run("logs", "server").stdout, 900, "server")
    words = ["run.toml", f"run.dir={tmp_path / 'run'}", "generate.backend=sent_along:Chatty"]
    other = client.run("submit", "generate", *words)
    said = client.run("logs", "server").stdout
    assert client.run("stop", "server").returncode == 0
    assert other.stdout.count("what a worker of generate says") > 0
    assert "what a worker of generate says" not in said and "JobSupervisor" not in said
    assert "ServeReplica" in said, "its own workers' lines are there"


def test_a_long_job_is_left_asked_about_followed_and_stopped(client: Client, tmp_path: Path):
    words = ["run.toml", f"run.dir={tmp_path / 'run'}", "problems.train=many.jsonl"]
    patient = ["--env", "RAY_JOB_STOP_WAIT_TIME_S=300"]  # Ray kills what has not ended by then
    waiting = client.start("submit", "run", *words, "--submission-id", "long", *patient)
    wait_until(lambda: (tmp_path / "run" / FOLDERS["generate"]).is_dir(), 900, "begun table")
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=900)
    assert waiting.returncode == 130
    assert "job long goes on" in err and "prm-ray stop long" in err

    second = client.run("submit", "train", *words, "--no-wait")
    assert second.returncode == 2
    assert "is in use: job long (run) is RUNNING there; follow it (prm-ray logs long --follow)" in second.stderr
    following = client.start("logs", "long", "--follow")
    state = client.run("status", "long").stdout
    assert re.search(r"^state +RUNNING, since ", state, re.M) and re.search(r"^stage +generate$", state, re.M)
    stopped = client.run("stop", "long")
    assert stopped.returncode == 0 and "job long was stopped after" in stopped.stdout
    out, _ = following.communicate(timeout=900)
    assert following.returncode == 1
    assert "generate  starts in" in out and "interrupted; what is finished is kept" in out
    assert "has ended already: it was stopped" in client.run("stop", "long").stdout


def test_a_killed_chain_goes_on_with_the_job_it_left_and_the_stages_that_are_missing(
    submitted: Submitted, client: Client, tmp_path: Path
):
    run_dir = tmp_path / "run"
    shutil.copytree(submitted[0], run_dir)
    for stage in ("rerank", "evaluate"):
        StageFolder(run_dir, stage).clear()
    words = ["submit", "run", "run.toml", f"run.dir={run_dir}", "--chain", "--submission-id", "chain"]
    first = client.start(*words)
    assert first.stderr is not None
    assert any("job chain-rerank submitted" in line for line in first.stderr)
    first.kill()
    first.communicate()
    second = client.run(*words)
    assert second.returncode == 0, second.stdout + second.stderr
    assert all(StageFolder(run_dir, stage).is_done() for stage in ("rerank", "evaluate"))
    jobs = [line.split()[0] for line in client.run("status").stdout.splitlines() if str(run_dir) in line]
    assert sorted(jobs) == ["chain-evaluate", "chain-rerank"]


def test_without_the_token_nobody_is_let_in(client: Client):
    stranger = Client(client.folder, client.environment | {"RAY_AUTH_MODE": "disabled"})
    wrong = Client(client.folder, client.environment | {"RAY_AUTH_TOKEN": uuid.uuid4().hex})
    for who, why in ((stranger, "asks for a token"), (wrong, "does not accept the token")):
        result = who.run("status")
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert why in line and "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line


def test_an_unknown_job_is_one_line(client: Client):
    for verb in ("status", "stop", "logs"):
        result = client.run(verb, "nobody")
        assert result.returncode == 2 and "there is no job 'nobody'" in result.stderr


def test_ray_job_submit_starts_the_same_work_from_a_checkout(submitted: Submitted, client: Client):
    """What the docs say for those who have no prm-ray where they submit from."""
    config = client.folder / "run.toml"
    command = [*RAY_JOB, str(ROOT), "--", "python", "-m", "jobs.evaluate", str(config), f"run.dir={submitted[0]}"]
    done = subprocess.run(command, env=client.environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "evaluate  already done" in done.stdout, done.stdout + done.stderr


def test_a_servers_claim_is_lost_with_the_machine_of_the_server_and_no_other(client: Client, tmp_path: Path):
    """It is on the server's own."""
    (tmp_path / "claims.py").write_text(CLAIMS)
    command = [*RAY_JOB, str(tmp_path), "--entrypoint-num-cpus", "1", "--", "python", "claims.py", str(tmp_path / "at")]
    done = subprocess.run(command, env=client.environment, capture_output=True, text=True, timeout=900)
    assert (tmp_path / "at").read_text() == "here " * 6, done.stdout + done.stderr
