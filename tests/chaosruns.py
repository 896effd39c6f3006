"""A run as a job of a small cluster, killed on purpose in its stages, and what then becomes of it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from prm_ray.tables import StageFolder
from tests.chaosplans import STAGES, WITH_THE_JOB, Kill, Outcome, Stage
from tests.clusters import Begun, SmallCluster
from tests.processes import NODE, command_line, marked

_PATIENCE_SECONDS = 2400
_NUM_NODES = 2
_OF_JOBS = ("-m prm_ray", "ray::MapWorker", "ray::RayTrain", "ray::TrainController", "ray::JobSupervisor")
_OF_JOBS += ("ray::GeneratorActor", "ray::ScorerActor", "VLLM::")


@dataclass
class ChaosRun:
    """What `prm-ray submit {words} run.dir={folder}` makes; its stderr goes to `log`, what the jobs print beside it.

    `retries`: the command submits a job again that failed, and so it does when another cluster answers at its address.
    """

    folder: Path
    words: str
    client: Path
    cluster: SmallCluster
    stages: dict[str, Stage] = field(default_factory=lambda: STAGES)
    retries: int = 0
    _command: subprocess.Popen[bytes] | None = None
    _deserted: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _begun: Begun | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def go_on(self, until: Callable[[], object], what: str) -> None:
        """Wait for it, and submit the run again whenever the command has ended without success."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not until():
            if self._command is None or self._command.poll() not in (None, 0):
                self._command = self._submit()
            assert time.monotonic() < give_up, f"no {what} within {_PATIENCE_SECONDS} s:\n{self._all_said()[-6000:]}"
            time.sleep(0.01)

    def has_ended(self) -> bool:
        return self._command is not None and self._command.poll() == 0

    def suffer(self, kill: Kill, rng: random.Random, to_end: bool = True) -> Outcome:
        """Kill, and go on to the end of the stage, or until there is more than before."""
        folder = StageFolder(self.folder, kill.stage)
        if kill.victim in ("node", "head"):
            self.join()
        others: list[psutil.Process] = []
        if self.stages[kill.stage].workers and kill.victim not in WITH_THE_JOB:
            self.go_on(lambda: progress(folder) >= 0, f"begin of {kill.stage}")
            others = self._workers(kill) if to_end else []  # of the stage before, about to end
        victims = self._wait_for_victims(kill, others)
        self.go_on(lambda: progress(folder) >= kill.least or folder.is_done(), f"{kill.least} in {kill.stage}")
        time.sleep(rng.random() * self.stages[kill.stage].pause)
        victims = [each for each in victims if isinstance(each, str) or each.is_running()] or self._victims(
            kill, others
        )
        jobs, start, was_over = self._num_jobs(), time.monotonic(), folder.is_done()
        if victims:
            self._end(rng.choice(victims))
        done = progress(folder)
        if kill.victim in WITH_THE_JOB:
            self.go_on(lambda: self._num_jobs() > jobs or self.has_ended(), "another job")
        goes_on = folder.is_done if to_end else lambda: progress(folder) > done or folder.is_done()
        self.go_on(goes_on, f"progress of {kill.stage}, in which a {kill.victim} was killed")
        return Outcome(kill, done, was_over, self._num_jobs() - jobs, time.monotonic() - start)

    def join(self) -> None:
        """Wait for the node that was begun in place of one that was killed."""
        begun, self._begun = self._begun, None
        if begun is not None:
            self.cluster.join(begun)

    def deserted(self) -> list[int]:
        """Exit codes of the commands that nobody told of another cluster."""
        return [command.wait(timeout=300) for command in self._deserted]

    def errors(self) -> list[str]:
        """All that commands have ended with."""
        return [line for line in self._said().splitlines() if line.startswith("prm-ray: error:")]

    def left(self) -> list[str]:
        """Processes of jobs that are still there, and nodes whose head was killed."""
        lines = [command_line(process) for process in marked(self.cluster.mark)]
        jobs = [word for word in _OF_JOBS if any(word in line for line in lines)]
        return jobs + [name for name in self.cluster.lost if any(map(_is_node, marked(name, NODE)))]

    def _submit(self) -> subprocess.Popen[bytes]:
        words = [*self.words.split(), f"run.dir={self.folder}", f"--retries={self.retries}"]
        environment = os.environ | self.cluster.environment | {"RAY_ADDRESS": self.cluster.address}
        with self.log.open("ab") as log, self.log.with_suffix(".out").open("ab") as out:
            command = [sys.executable, "-m", "prm_ray", "submit", *words]
            return subprocess.Popen(command, cwd=self.client, env=environment, stdout=out, stderr=log)

    def _end(self, victim: psutil.Process | str) -> None:
        """Kill it; of a node begin to start another one in its place."""
        if victim == self.cluster.head:
            self._lose_head()
        elif isinstance(victim, str):
            self.cluster.kill_node(victim)
            self._begun = self.cluster.begin_node()
        else:
            with suppress(psutil.NoSuchProcess):  # the stage was over that moment
                victim.kill()

    def _lose_head(self) -> None:
        """Another cluster comes: where a command is to go on by itself at the same address, else somewhere else, and
        somebody submits again while the command still waits for the old one."""
        self.cluster.kill_head()
        if not self.retries and self._command is not None and self._command.poll() is None:
            self._deserted.append(self._command)
            self._command = None
        self.cluster.start(_NUM_NODES, same_address=self.retries > 0)

    def _wait_for_victims(self, kill: Kill, others: list[psutil.Process]) -> list[Any]:
        """Nothing if the run has ended before."""
        found: list[Any] = []

        def look() -> bool:
            found.extend(self._victims(kill, others))
            time.sleep(0 if found else 0.1)  # a look at all processes costs a core, which the run needs
            return bool(found) or self.has_ended()

        self.go_on(look, f"{kill.victim} in {kill.stage}")
        return found

    def _victims(self, kill: Kill, others: list[psutil.Process]) -> list[Any]:
        """Processes, or names of nodes; where the stage has workers, of nodes with one of those."""
        if kill.victim == "supervisor":
            return self._processes("ray::JobSupervisor")
        if kill.victim in WITH_THE_JOB:
            drivers = self._processes(f"-m prm_ray {self.words} run.dir={self.folder}")
            return [self.cluster.head] if drivers and kill.victim == "head" else drivers
        workers = [process for process in self._workers(kill) if process not in others]
        if kill.victim != "node":
            return workers
        if not self.stages[kill.stage].workers:
            return list(self.cluster.nodes)
        return [name for name in self.cluster.nodes if any(process in workers for process in marked(name, NODE))]

    def _workers(self, kill: Kill) -> list[psutil.Process]:
        names = self.stages[kill.stage].workers
        wanted = [names[kill.victim]] if kill.victim in names else names.values()
        return [process for name in dict.fromkeys(wanted) for process in self._processes(name)]

    def _processes(self, word: str) -> list[psutil.Process]:
        """Of the living cluster, whose command line has this in it, by number; a shell that waits for one is none."""
        found = []
        for process in marked(self.cluster.mark):
            line = command_line(process)
            if word in line and not line.startswith("/bin/sh") and _node_of(process) not in self.cluster.lost:
                found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _num_jobs(self) -> int:
        return len(re.findall(r"job \S+ submitted to", self._said()))

    def _said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def _all_said(self) -> str:
        out = self.log.with_suffix(".out")
        return (out.read_text() if out.exists() else "") + self._said()


def _node_of(process: psutil.Process) -> str | None:
    with suppress(psutil.NoSuchProcess):
        return process.environ().get(NODE)
    return None


def _is_node(process: psutil.Process) -> bool:
    """Ray's log monitor, which writes nothing of a run, lives on without it."""
    return command_line(process).split(" ")[0].endswith("/raylet")


def progress(folder: StageFolder) -> int:
    """Steps or parts that are there; -1 before the stage begins."""
    if not folder.path.is_dir():
        return -1
    if folder.stage in ("warmup", "train"):
        found = [*folder.path.glob("attempt-*/metrics.jsonl"), *folder.path.glob("metrics.jsonl")]
        return max((_num_lines(path) for path in found), default=0)
    return len(folder.finished_parts())


def _num_lines(path: Path) -> int:
    try:
        return path.read_text().count("\n")
    except FileNotFoundError:  # its workspace has just gone
        return 0
