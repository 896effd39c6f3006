"""What is killed in which stage of a run that is a cluster's job, and when: a plan that a seed makes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

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
timeout_seconds = 120
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


@dataclass(frozen=True)
class Stage:
    size: int
    """Steps, or parts of its table, that it makes one after the other."""
    workers: dict[str, str] = field(default_factory=dict)
    """What does its work, and how Ray's name for such a process begins."""
    others: tuple[str, ...] = ("node", "driver", "supervisor")
    """What else is killed in it. With a head goes a whole cluster, which takes long to come again."""
    pause: float = 0.1
    """Seconds from one moment to the next, of which a kill takes a random part."""

    @property
    def victims(self) -> list[str]:
        return [*self.workers, *self.others]


WITH_THE_JOB = ("driver", "supervisor", "head")
"""They end the job; whatever else is killed, it goes on by itself."""
_TRAIN_WORKER = {"train worker": "ray::RayTrainWorker"}
_DATA_WORKER = {"data worker": "ray::MapWorker"}
_ALL = ("node", *WITH_THE_JOB)
STAGES = {
    "warmup": Stage(12, _TRAIN_WORKER),
    "generate": Stage(32, {"engine's actor": "ray::MapWorker"}, _ALL),
    "label": Stage(32, _DATA_WORKER),
    "reference": Stage(32, _DATA_WORKER),
    "train": Stage(24, _TRAIN_WORKER, _ALL),
    "score": Stage(32, _DATA_WORKER),
    "rerank": Stage(8, pause=0.0),
    "evaluate": Stage(1, pause=0.4),
}
_LATEST = 0.6
"""Share of a stage up to which it is killed: what comes before the kill takes a moment too."""
_LATEST_ALONE = 0.4
"""Where the end of a run's only stage would come too soon behind the last kill."""


@dataclass(frozen=True)
class Kill:
    stage: str
    victim: str
    least: int
    """Steps or parts that are there before."""


@dataclass(frozen=True)
class Outcome:
    kill: Kill
    done: int
    """Steps or parts that were there."""
    was_over: bool
    num_jobs: int
    """That were submitted until it went on."""
    seconds: float

    @property
    def went_on_by_itself(self) -> bool:
        return not self.num_jobs

    def __str__(self) -> str:
        when = "when it was over" if self.was_over else f"at {self.done}"
        how = "goes on by itself" if self.went_on_by_itself else f"{self.num_jobs} more submitted"
        return f"{self.kill.stage:<10} {self.kill.victim} killed {when}: {how}, {self.seconds:.1f} s"


def plan(num_kills: int, rng: random.Random) -> list[list[Kill]]:
    """Rounds of at most a kill a stage, in the last one of as many as are left.

    Whatever can be killed in a stage comes up there before anything does again.
    """
    orders = {name: rng.sample(stage.victims, len(stage.victims)) for name, stage in STAGES.items()}
    most = max(map(len, orders.values()))
    rounds: list[list[Kill]] = []
    while (left := num_kills - sum(map(len, rounds))) > 0:
        turn = len(rounds) % most
        kills = [
            Kill(name, order[turn], int(rng.random() * _LATEST * STAGES[name].size))
            for name, order in orders.items()
            if turn < len(order)
        ]
        rounds.append(sorted(rng.sample(kills, min(left, len(kills))), key=kills.index))
    return rounds


def plan_of_one(name: str, stage: Stage, victims: Sequence[str], rng: random.Random) -> list[Kill]:
    """Kills of one stage, one after the other."""
    moments = [(number + rng.random()) / len(victims) for number in range(len(victims))]
    return [
        Kill(name, victim, int(moment * _LATEST_ALONE * stage.size))
        for victim, moment in zip(victims, moments, strict=True)
    ]
