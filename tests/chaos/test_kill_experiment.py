"""SIGKILL between two runs of an experiment: the same command makes what is missing and touches nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from prm_ray.experiment.grid import is_done, load_experiment
from tests.integration.test_experiment_runs import BASE, GRID, everything
from tests.processes import MARK, wait_for_end, wait_until


def test_a_killed_experiment_goes_on_with_the_same_command(tmp_path: Path, tiny_model: str, mark: str):
    (tmp_path / "base.toml").write_text(BASE.format(model=tiny_model))
    (tmp_path / "grid.toml").write_text(GRID)
    folder = tmp_path / "runs"
    command = [sys.executable, "-m", "prm_ray.cli", "experiment", str(tmp_path / "grid.toml"), "--only", "ce"]
    command += ["--dir", str(folder)]
    runs = {run.name: run for run in load_experiment(tmp_path / "grid.toml", folder=str(folder)).chosen(["ce"])}
    first = subprocess.Popen(command, env=os.environ | {MARK: mark})
    wait_until(lambda: is_done(runs["ce-0"]) or first.poll() is not None, 600, "finished run")
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for_end(mark, 360)
    assert is_done(runs["ce-0"]) and not is_done(runs["ce-1"])
    before = {path: at for path, at in everything(folder).items() if "ce-1" not in path.parts}

    done = subprocess.run(command, env=os.environ | {MARK: mark}, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert is_done(runs["ce-1"]) and "ce-1: 2 of 3 runs done, about" in done.stderr
    after = everything(folder)
    assert {path: after[path] for path in before} == before
    assert (folder / "comparison" / "comparison.html").is_file()
