"""What the demo shows: which problem it takes and how the pick reads."""

import subprocess
import sys
from pathlib import Path

from prm_ray.client import ResponseReward, StepReward
from prm_ray.config import RunConfig, load_config
from prm_ray.demo import pick_problem, picked_text
from prm_ray.tables import StageFolder


def run_with_scores(tmp_path: Path, rows: list[tuple[str, int, str | None, bool | None]]) -> RunConfig:
    """Rows are (prompt_id, sample_index, text, correct)."""
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\ndir = "{tmp_path}"\n')
    config = load_config(path)
    folder = StageFolder(config.run.dir, "score")
    folder.begin({})
    table = [
        {"prompt_id": key, "problem": f"problem {key}", "sample_index": index, "text": text, "correct": correct}
        for key, index, text, correct in rows
    ]
    folder.write_part(0, table)
    return config


def test_the_first_problem_with_right_and_wrong_candidates_is_shown(tmp_path: Path):
    rows = [("a", 0, "x", True), ("b", 1, "y", True), ("b", 0, "z", False), ("c", 0, "u", True), ("c", 1, "v", False)]
    candidates = pick_problem(run_with_scores(tmp_path, rows))
    assert [(row["problem"], row["text"]) for row in candidates] == [("problem b", "z"), ("problem b", "y")]


def test_a_run_without_a_mixed_problem_shows_its_first(tmp_path: Path):
    rows = [("a", 0, "x", True), ("a", 1, None, None), ("b", 0, "z", False)]
    assert [row["text"] for row in pick_problem(run_with_scores(tmp_path, rows))] == ["x"]


def test_the_pick_is_shown_with_a_reward_before_every_step():
    candidates = [
        {"problem": "1 + 1", "gold_answer": "2", "answer": "3", "correct": False},
        {"problem": "1 + 1", "gold_answer": "2", "answer": "2", "correct": True},
        {"problem": "1 + 1", "gold_answer": "2", "answer": None, "correct": None},
    ]
    steps = [StepReward("1 + 1 = 2\n", 0, 10, 5, 0.75, 0.75), StepReward("Answer: 2", 10, 19, 4, -0.25, 0.5)]
    rewards = [
        ResponseReward(0, -1.0, {"sum": -1.0}, [], 9, None),
        ResponseReward(1, 0.5, {"sum": 0.5}, steps, 9, None),
        ResponseReward(2, None, {}, [], 0, "too_long: 600"),
    ]
    text = picked_text(candidates, rewards, "sum")
    assert "    +0.500  2           right\n    -1.000  3           wrong\n" in text
    assert "     error  -           could not be judged\n" in text
    assert text.endswith("the pick, answer 2, step by step:\n    +0.750  1 + 1 = 2\n    -0.250  Answer: 2")


PEAKS = """
import subprocess, sys
from prm_ray.demo import _PeakMemory

hold = "import time; block = b'x' * 200_000_000; print('ready', flush=True); time.sleep(600)"
with _PeakMemory() as alone:
    pass
with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    with _PeakMemory() as together:
        pass
    child.kill()
print(together.peak_bytes - alone.peak_bytes)
"""


def test_peak_memory_counts_child_processes():
    """The child holds 200 MB more than its parent needs, a process of its own: the tests' has Ray's below it."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000_000
