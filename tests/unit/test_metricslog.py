"""metrics.jsonl: cut back on resume, whole or not at all, and followed by whoever shows progress."""

import os
import threading
from pathlib import Path

import pytest

from prm_ray.metricslog import MetricsLog, follow_metrics, steps_recorded
from tests.unit.test_damage import Killed


def test_a_kill_while_metrics_are_dropped_that_come_again_loses_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(*_: int) -> None:
        raise Killed

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(Killed):
        MetricsLog(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_line_of_metrics_that_a_full_disk_cut_off_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    MetricsLog(path, 2).write(2)
    assert [line[:10] for line in path.read_text().splitlines()] == ['{"step": 1', '{"step": 2']


def test_who_follows_metrics_is_not_led_astray_by_a_restarted_run(tmp_path: Path):
    path, finished = tmp_path / "metrics.jsonl", threading.Event()
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert steps_recorded(path) == 2
    lines = follow_metrics(path, finished)
    assert next(lines)["step"] == 2
    metrics = MetricsLog(path, 1)
    assert next(lines)["step"] == 1 == steps_recorded(path)
    for step in (2, 3):
        metrics.write(step, loss=0.5)
    finished.set()
    assert [line["step"] for line in lines] == [3]
