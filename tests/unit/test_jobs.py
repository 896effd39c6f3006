"""Every job is a short entry point that `python -m jobs.NAME` starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from prm_ray.config import MEASUREMENTS, STAGES

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


def job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"jobs.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)


def test_there_is_a_job_for_every_stage_the_whole_run_and_the_server():
    assert {path.stem.removesuffix("_") for path in JOBS} == {*STAGES, *MEASUREMENTS, "run", "serve"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_has_at_most_30_lines_and_says_how_to_submit_it(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    assert f"ray job submit --working-dir . -- python -m jobs.{path.stem} CONFIG" in text


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_calls_what_it_is_named_after(path: Path, tmp_path: Path):
    """A run without any results: each job must ask for exactly the stage before it (or start, for the first)."""
    config = tmp_path / "run.toml"
    config.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n[problems]\ntrain = "{tmp_path}/none.jsonl"\n')
    result = job(path.stem, str(config), "train.beta=oops")
    assert result.returncode == 2
    assert result.stderr.startswith("prm-ray: error: train.beta: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("warmup", "this run has no warmup stage: warmup.enabled is false"),
        ("import_", "this run has no import stage: import.source is not set"),
        ("label", "run the generate stage first"),
        ("evaluate", "run the generate stage first"),
        ("processbench", "run the generate stage first"),
        ("policy", "run the generate stage first"),
        ("serve", "run the train stage first"),
    ],
)
def test_a_job_runs_its_own_stage(name: str, message: str, tmp_path: Path):
    config = tmp_path / "run.toml"
    config.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n')
    result = job(name, str(config))
    assert result.returncode == 2
    assert message in result.stderr


def test_a_job_explains_itself():
    result = job("train", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: python -m jobs.train [-h] CONFIG [section.key=value ...]")
