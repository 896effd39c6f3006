"""A whole run as a job of a small cluster, killed on purpose in each of its stages, and what then becomes of it."""

from __future__ import annotations

import math
import random
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from prm_ray.tables import StageFolder
from tests.clusters import Begun, SmallCluster
from tests.processes import NODE, marked

CONFIG = """
[model]
name = "{model}"
dtype = "float32"
[problems]
num_train = 48
num_test = 16
[warmup]
enabled = true
num_problems = 96
lr = 1e-3
batch_size = 8
checkpoint_every = 4
num_workers = 2
[generate]
backend = "transformers"
num_engines = 2
num_samples = 4
max_tokens = 16
problems_per_shard = 2
[label]
judge = "sent_along:judge"
num_workers = 2
[reference]
step_rule = "newline"
num_workers = 2
[train]
lr = 1e-3
batch_size = 8
checkpoint_every = 6
num_workers = 2
validation_fraction = 0.0
[score]
num_workers = 2
[rerank]
sizes = [1, 2, 4]
"""
JUDGE = """
import time

def judge(text: str, gold: str) -> bool:
    time.sleep(0.01)
    return len(text) % 2 == 0
"""
NUM_RESPONSES, NUM_SCORED = 64 * 4, 16 * 4
SIZES = {
    "warmup": 12,
    "generate": 32,
    "label": 32,
    "reference": 32,
    "train": 24,
    "score": 32,
    "rerank": 8,
    "evaluate": 1,
}
"""Stage -> how many steps or parts of a table it makes one after the other."""
WORKERS = {
    "warmup": ("train worker", "ray::RayTrainWorker"),
    "generate": ("engine's actor", "ray::MapWorker"),
    "label": ("data worker", "ray::MapWorker"),
    "reference": ("data worker", "ray::MapWorker"),
    "train": ("train worker", "ray::RayTrainWorker"),
    "score": ("data worker", "ray::MapWorker"),
}
"""Stage -> what does its work, and how Ray's name for such a process begins."""
_WITH_THE_JOB = ("driver", "supervisor")
VICTIMS = {stage: [*WORKERS.get(stage, ())[:1], "node", *_WITH_THE_JOB] for stage in SIZES}
_PAUSES = {"rerank": 0.0, "evaluate": 0.4}
"""Seconds from one moment in a stage to the next, of which a kill takes a random part; of others 0.1."""
_LATEST = 0.6
"""Share of a stage up to which it is killed: what comes before the kill takes a moment too."""
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Kill:
    """`moment` is a share of the stage, from 0 to 1."""

    stage: str
    victim: str
    moment: float


@dataclass(frozen=True)
class Outcome:
    kill: Kill
    done: int
    """Steps or parts that were there."""
    was_over: bool
    num_jobs: int
    """That were submitted until the stage was finished."""
    seconds: float

    def __str__(self) -> str:
        when = "when it was over" if self.was_over else f"at {self.done} of {SIZES[self.kill.stage]}"
        how = f"{self.num_jobs} more submitted" if self.num_jobs else "goes on by itself"
        return f"{self.kill.stage:<9} {self.kill.victim} killed {when}: {how}, finished {self.seconds:.1f} s later"


def plan(num_kills: int, rng: random.Random) -> list[list[Kill]]:
    """Rounds of a kill a stage, in the last one of as many as are left.

    Whatever can be killed in a stage comes up there before anything does again.
    """
    orders = {stage: rng.sample(victims, len(victims)) for stage, victims in VICTIMS.items()}
    rounds = []
    for number in range(math.ceil(num_kills / len(SIZES))):
        kills = [Kill(stage, order[number % len(order)], rng.random()) for stage, order in orders.items()]
        left = min(len(kills), num_kills - number * len(kills))
        rounds.append(sorted(rng.sample(kills, left), key=kills.index))
    return rounds


@dataclass
class ChaosRun:
    """A run in `folder`; `submit` starts the command that submits it, which writes into `log`."""

    folder: Path
    log: Path
    cluster: SmallCluster
    submit: Callable[[], subprocess.Popen[Any]]
    command: subprocess.Popen[Any] | None = None
    begun: list[Begun] = field(default_factory=list)
    """Nodes that start meanwhile: who waited for them would find the next stages over."""

    def go_on(self, until: Callable[[], object], what: str) -> None:
        """Wait for it, and submit the run again whenever the command has ended without success."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not until():
            if self.command is None or self.command.poll() not in (None, 0):
                self.command = self.submit()
            assert time.monotonic() < give_up, f"no {what} within {_PATIENCE_SECONDS} s:\n{self._said()[-6000:]}"
            time.sleep(0.01)

    def has_ended(self) -> bool:
        return self.command is not None and self.command.poll() == 0

    def suffer(self, kill: Kill, rng: random.Random) -> Outcome:
        """Kill, and go on to the end of the stage."""
        folder, least = StageFolder(self.folder, kill.stage), int(kill.moment * _LATEST * SIZES[kill.stage])
        others: list[psutil.Process] = []
        if kill.stage in WORKERS and kill.victim not in _WITH_THE_JOB:
            self.go_on(lambda: progress(folder) >= 0, f"begin of {kill.stage}")
            others = self._workers(kill.stage)  # of the stage before, about to end
        if not (victims := self._wait_for_victims(kill, others)):
            return Outcome(kill, progress(folder), True, 0, 0.0)
        victim = rng.choice(victims)
        self.go_on(lambda: progress(folder) >= least, f"{least} of {SIZES[kill.stage]} in {kill.stage}")
        time.sleep(rng.random() * _PAUSES.get(kill.stage, 0.1))
        jobs, start = self._num_jobs(), time.monotonic()
        self._end(victim)
        done, was_over = progress(folder), folder.is_done()
        if kill.victim in _WITH_THE_JOB:
            self.go_on(lambda: self._num_jobs() > jobs or self.has_ended(), "another job")
        self.go_on(folder.is_done, f"end of {kill.stage}, in which a {kill.victim} was killed")
        return Outcome(kill, done, was_over, self._num_jobs() - jobs, time.monotonic() - start)

    def join_nodes(self) -> None:
        while self.begun:
            self.cluster.join(self.begun.pop())

    def left(self) -> list[str]:
        """Processes of jobs that are still there."""
        words = ("-m prm_ray", "ray::MapWorker", "ray::RayTrain", "ray::TrainController", "ray::JobSupervisor")
        return [word for word in words if self._processes(word)]

    def _end(self, victim: psutil.Process | str) -> None:
        """Kill it; of a node begin to start another one in its place."""
        if isinstance(victim, str):
            self.cluster.kill_node(victim)
            self.begun.append(self.cluster.begin_node())
            return
        with suppress(psutil.NoSuchProcess):  # the stage was over that moment
            victim.kill()

    def _wait_for_victims(self, kill: Kill, others: list[psutil.Process]) -> list[Any]:
        """None if the run was over before there were any."""
        if kill.victim == "node":
            self.join_nodes()
        found: list[Any] = []

        def look() -> bool:
            found.extend(self._victims(kill, others))
            time.sleep(0 if found else 0.1)  # a look at all processes costs a core, which the run needs
            return bool(found) or self.has_ended()

        self.go_on(look, f"{kill.victim} in {kill.stage}")
        return found

    def _victims(self, kill: Kill, others: list[psutil.Process]) -> list[Any]:
        """Processes, or names of nodes; where the stage has workers, of nodes with one of those."""
        if kill.victim == "driver":
            return self._processes(f"-m prm_ray run run.toml run.dir={self.folder}")
        if kill.victim == "supervisor":
            return self._processes("ray::JobSupervisor")
        workers = [process for process in self._workers(kill.stage) if process not in others]
        if kill.victim != "node":
            return workers
        if kill.stage not in WORKERS:
            return list(self.cluster.nodes)
        return [name for name in self.cluster.nodes if any(process in workers for process in marked(name, NODE))]

    def _workers(self, stage: str) -> list[psutil.Process]:
        return self._processes(WORKERS[stage][1]) if stage in WORKERS else []

    def _processes(self, word: str) -> list[psutil.Process]:
        """Of the cluster, whose command line has this in it, by number; a shell that only waits for one is none."""
        found = []
        for process in marked(self.cluster.mark):
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            found += [process] if word in " ".join(words) and words[0] != "/bin/sh" else []
        return sorted(found, key=lambda process: process.pid)

    def _num_jobs(self) -> int:
        return len(re.findall(r"job \S+ submitted to", self._said()))

    def _said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


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
