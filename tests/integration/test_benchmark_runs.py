"""The benchmarks as a user runs them, on a tiny model: each ends well, shows its table and writes its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"prompt": 12, "response": 8, "n": 3, "prompts": 2, "repeats": 1, "seconds": 0, "threads": 1, "check": 2}
SMALL = ["--model=tiny", *(f"--{name}={value}" for name, value in SIZE.items())]


def run(name: str, folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What `python -m benchmarks.NAME` printed and wrote."""
    out = folder / "out.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL, *arguments, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "failed" not in ended.stdout, ended.stdout + ended.stderr
    return ended.stdout, json.loads(out.read_text(encoding="utf-8"))


def test_scoring_compares_the_ways_asked_for(tmp_path: Path):
    printed, written = run("scoring", tmp_path, "--ways", "both,padded,loop", "--dtype", "float32")
    assert len(written["scoring"]) == 3
    for name, row in written["scoring"].items():
        assert name in printed
        assert row["response_tokens_per_second"] > 0
        assert row["max_difference"] < 1e-4
        assert row["peak_gib"] > row["work_gib"] >= 0


def test_scoring_leaves_out_nothing_that_vllm_gives(tmp_path: Path):
    pytest.importorskip("vllm")
    _, written = run("scoring", tmp_path, "--ways", "both,vllm", "--dtype", "float32")
    rows = list(written["scoring"].values())
    assert rows[2]["seconds"] == 2 * rows[1]["seconds"]
    assert rows[1]["max_difference"] < 1e-4


def test_training_compares_one_step_both_ways(tmp_path: Path):
    _, written = run("training", tmp_path, "--dtype", "float32")
    (result,) = written["training"]
    assert result["ways"]["padded"]["times_slower_than_ours"] > 0
    for way in result["ways"].values():
        assert abs(way["loss_difference"]) < 1e-5
        assert way["mfu"] > 0


def test_roofline_states_a_fraction(tmp_path: Path):
    printed, written = run("roofline", tmp_path)
    (result,) = written["roofline"]
    assert f"{result['fraction']:.1%}" in printed
    assert result["fraction"] == pytest.approx(result["useful_flops_per_second"] / result["matrix_flops_per_second"])


def test_generation_is_timed_and_then_scored(tmp_path: Path):
    pytest.importorskip("vllm")
    _, written = run("generation", tmp_path, "--dtype", "float32")
    assert written["rounds"][0]["generate"]["response_tokens"] == 2 * 3 * 8
    assert written["summary"]["both"]["share"] > 0
    assert all(gap["max_difference"] < 1e-4 for gap in written["differences"].values())
