"""A replica in a process of its own, as Ray starts it: one OpenMP thread unless somebody says otherwise."""

import os
import subprocess
import sys

PROGRAM = """
import asyncio, ctypes, re, torch
from types import SimpleNamespace
from prm_ray.scoring.replica import Limits, Replica
from prm_ray.scoring.asks import Ask, Options

class Scorer:
    def prepare(self, problem, responses):
        return SimpleNamespace(num_tokens=1, prompt_tokens=())

    def score_prepared(self, prepared):
        # asked of OpenMP itself: torch's own answer first sets what it then says
        library = re.search(r"\\S*lib[gi]omp\\S*", open("/proc/self/maps").read())[0]
        print("threads:", ctypes.CDLL(library).omp_get_max_threads())
        raise RuntimeError("nothing to score")

torch.set_num_threads(3)
replica = Replica(Scorer(), Limits(max_tokens=10, token_budget=10, max_queued_tokens=10))
asyncio.run(replica.score([Ask("1 + 2", ["3"])], Options()))
"""


def test_the_model_computes_in_as_many_threads_as_the_replica_was_given() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert "threads: 3" in ended.stdout, ended.stderr
