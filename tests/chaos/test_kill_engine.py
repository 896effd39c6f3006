"""SIGKILL of the process that holds a vLLM engine, in a moment: the engine's own processes end by themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import MARK, marked, wait_for_end

HOLDER = """
import asyncio, sys
from prm_ray.config import load_config
from prm_ray.stages.sampler import make_sampler
from prm_ray.stages.sampling import sampler_options

options = sampler_options(load_config(sys.argv[1]), sys.argv[2])

async def hold():
    sampler = make_sampler(options)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(hold())
"""


def test_an_engine_ends_with_whoever_holds_it(tmp_path: Path, demo_model: Path, mark: str):
    pytest.importorskip("vllm")
    config = tmp_path / "run.toml"
    config.write_text('[generate]\nbackend = "vllm"\nmax_tokens = 4\n[prompt]\nmax_tokens = 64\n')
    command = [sys.executable, "-c", HOLDER, str(config), str(demo_model)]
    with subprocess.Popen(command, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert any(line.strip() == "ready" for line in holder.stdout)
        assert len(marked(mark)) > 1
        holder.send_signal(signal.SIGKILL)
    wait_for_end(mark, 90)
