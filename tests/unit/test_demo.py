"""What the demo shows: which problem it takes and how the pick reads."""

import subprocess
import sys
from pathlib import Path

from prm_ray.config import RunConfig, load_config
from prm_ray.demo import _PeakMemory, pick_problem, picked_text, request_body
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
    assert request_body(candidates) == {"query": "problem b", "documents": ["z", "y"]}


def test_a_run_without_a_mixed_problem_shows_its_first(tmp_path: Path):
    rows = [("a", 0, "x", True), ("a", 1, None, None), ("b", 0, "z", False)]
    assert request_body(pick_problem(run_with_scores(tmp_path, rows)))["documents"] == ["x"]


def test_the_pick_is_shown_with_a_reward_before_every_step():
    candidates = [
        {"problem": "1 + 1", "gold_answer": "2", "answer": "3", "correct": False},
        {"problem": "1 + 1", "gold_answer": "2", "answer": "2", "correct": True},
        {"problem": "1 + 1", "gold_answer": "2", "answer": None, "correct": None},
    ]
    best = {"index": 1, "relevance_score": 0.5, "steps": ["1 + 1 = 2\n", "Answer: 2"], "step_rewards": [0.75, -0.25]}
    others = [{"index": 0, "relevance_score": -1.0}, {"index": 2, "relevance_score": None}]
    text = picked_text(candidates, {"aggregation": "sum", "results": [best, *others]})
    assert "    +0.500  2           right\n    -1.000  3           wrong\n" in text
    assert "     error  -           could not be judged\n" in text
    assert text.endswith("the pick, answer 2, step by step:\n    +0.750  1 + 1 = 2\n    -0.250  Answer: 2")


def test_peak_memory_counts_child_processes():
    """The child holds 200 MB more than this process needs."""
    with _PeakMemory() as alone:
        pass
    program = "import time; block = b'x' * 200_000_000; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        with _PeakMemory() as together:
            pass
        child.kill()
    assert together.peak_bytes - alone.peak_bytes > 150_000_000
