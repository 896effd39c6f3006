"""A cluster of our own on this machine: a head and workers, each a `ray start`, and nobody else's ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from pathlib import Path

import psutil

from tests.ports import free_ports
from tests.processes import MARK, NODE, marked

_BIN = Path(sys.executable).parent
_START_SECONDS = 600
_OBJECT_STORE_BYTES = 100_000_000
_PATIENT = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"}
_LOST_NODE = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""A killed node is given up after 3 s; with Ray's own values a test of kills would wait for that most of its time."""


Begun = tuple[str, subprocess.Popen[str]]
"""Name of a node, and the command that starts it."""


@dataclass
class SmallCluster:
    """`environment` is what a client needs to be let in; every process of the cluster has `mark`.

    Each node has its name as `NODE` in the environment of all its processes. `nodes` are the workers' nodes, `lost`
    those of heads that were killed: nobody tells them that it is over.
    """

    environment: dict[str, str]
    mark: str
    folder: str
    cpus_each: int
    head: str = ""
    nodes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    _ports: list[int] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    def num_processes(self) -> int:
        return len(marked(self.mark))

    def start(self, num_workers: int, same_address: bool = False) -> None:
        """A head and workers. `same_address`: where the last head was, as a machine that starts again."""
        self._ports = self._ports if same_address else free_ports(3)
        try:
            self._start_head()
        except AssertionError:  # Ray gives up a node that takes more than 30 s, as it may on a busy machine
            _kill_all(self.head)
            self._start_head()
        for begun in [self.begin_node() for _ in range(num_workers)]:
            self.join(begun)
        _wait_for_jobs_api(self.address)

    def _start_head(self) -> None:
        self.head, environment = self._new_node()
        _wait_for(_ray_start(_head_arguments(*self._ports), self._folder_of(self.head), environment))

    def kill_node(self, name: str) -> None:
        """As if its machine had lost power: SIGKILL of all its processes, none of which sees another one die."""
        self.nodes.remove(name)
        _kill_all(name)

    def kill_head(self) -> None:
        """The same of the head, and with it of the jobs' own processes. The workers' nodes live on, for a while."""
        _kill_all(self.head)
        self.lost += self.nodes
        self.nodes = []

    def clear_lost(self) -> None:
        """End what is left there: Ray's agents and log monitors, which hold nothing and stay for long."""
        while self.lost:
            _kill_all(self.lost.pop())

    def begin_node(self) -> Begun:
        """Start one more node, without waiting for it."""
        name, environment = self._new_node()
        arguments = [f"--address=127.0.0.1:{self._ports[0]}", f"--num-cpus={self.cpus_each}"]
        self.nodes.append(name)
        return name, _ray_start(arguments, self._folder_of(name), environment)

    def join(self, begun: Begun) -> None:
        """Wait for a node that was begun. Ray gives up one that takes more than 30 s; on a busy machine it gets another
        chance."""
        name, command = begun
        command.communicate(timeout=_START_SECONDS)
        if command.returncode != 0 and name in self.nodes:
            self.kill_node(name)
            _wait_for(self.begin_node()[1])

    def _new_node(self) -> tuple[str, dict[str, str]]:
        name = f"{self.mark}-{next(self._numbers)}"
        return name, _node_environment(self.folder, self.mark) | self.environment | {NODE: name}

    def _folder_of(self, name: str) -> str:
        return f"{self.folder}/{name.rpartition('-')[2]}"


def _kill_all(name: str) -> None:
    while processes := marked(name, NODE, with_agents=True):  # again, for what they started meanwhile
        for signal_number in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal_number)
        psutil.wait_procs(processes, timeout=3)


@contextmanager
def small_cluster(num_workers: int = 2, cpus_each: int = 4) -> Iterator[SmallCluster]:
    """A head without CPUs of its own, as on a real cluster, and workers with so many logical CPUs each.

    The dashboard listens on loopback; the nodes find each other by the machine's own address, so the cluster lets in
    only who has its token. `ray stop` would end every Ray of this machine, so nothing here calls it: the processes are
    told from all others by a variable in their environment.
    """
    mark = uuid.uuid4().hex
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    # A temporary folder of pytest would make the paths of Ray's sockets too long.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        cluster = SmallCluster(auth, mark, temp, cpus_each)
        try:
            cluster.start(num_workers)
            yield cluster
        finally:
            _end(mark)


def _node_environment(temp: str, mark: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    path = os.pathsep.join([str(_BIN), os.environ.get("PATH", "")])  # a job's `python` is that of the tests
    return kept | {MARK: mark, "PATH": path, "RAY_TMPDIR": temp, "RAY_worker_niceness": "0", **_PATIENT}


def _head_arguments(gcs: int, dashboard: int, client: int) -> list[str]:
    return [
        "--head",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        "--include-dashboard=true",
        f"--ray-client-server-port={client}",
        "--num-cpus=0",
        f"--system-config={json.dumps(_LOST_NODE)}",
    ]


def _ray_start(arguments: list[str], temp: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Nodes of one machine share its ports, so every other port is one that is free.

    Each has a temporary folder of its own: in a shared one a node that unpacks a job's folder first removes what
    another has unpacked, and the job that runs in it.
    """
    (agent, metrics) = free_ports(2)
    command = [str(_BIN / "ray"), "start", "--disable-usage-stats", *arguments]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    command += [f"--temp-dir={temp}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for(command: subprocess.Popen[str]) -> None:
    said, _ = command.communicate(timeout=_START_SECONDS)
    assert command.returncode == 0, said


def _wait_for_jobs_api(address: str) -> None:
    give_up = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):
                return
        except urllib.error.HTTPError:  # it asks for a token: it is there
            return
        except OSError:
            assert time.monotonic() < give_up, f"no Jobs API at {address}"
            time.sleep(0.2)


def _end(mark: str) -> None:
    """Told, and then made to: again and again, for a process that ends may have begun another one."""
    give_up = time.monotonic() + 120
    for signal_name in chain(["terminate"], repeat("kill")):
        if not (processes := marked(mark)):
            return
        assert time.monotonic() < give_up, f"still there: {processes}"
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                getattr(process, signal_name)()
        psutil.wait_procs(processes, timeout=3)
