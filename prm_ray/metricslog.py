"""`metrics.jsonl` beside a checkpoint: a line an optimizer step, written by one worker, read by whoever follows."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prm_ray.errors import StorageError
from prm_ray.folders import open_folder, write_file
from prm_ray.objectstore import is_remote
from prm_ray.runlog import log
from prm_ray.storage import bytes_writer, writing

METRICS_FILE = "metrics.jsonl"
_PUT_SECONDS = 5.0
"""An object is put as a whole: that seldom."""


class MetricsLog:
    """Appends one JSON object a line; at an address what is new is there after a while, and after `flush`.

    On resume, lines of steps that are done again are dropped first. Raises `StorageError` if the disk is full.
    """

    def __init__(self, path: Path, resume_step: int = 0):
        self._path, self._is_remote = path, is_remote(path)
        self._unwritten = False
        self._put_at = time.monotonic()
        before = _whole_lines(path)
        self._lines = [line for line in before if json.loads(line)["step"] <= resume_step]
        if before:
            self._put()  # whole or not at all: who is killed here loses no line

    def write(self, step: int, **metrics: Any) -> None:
        line = json.dumps({"step": step, "time": round(time.time(), 2), **metrics}) + "\n"
        if not self._is_remote:
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(line)
            return
        self._lines.append(line)
        self._unwritten = True
        if time.monotonic() - self._put_at > _PUT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """What is written so far is there for all."""
        if self._unwritten:
            self._put()

    def _put(self) -> None:
        write_file(self._path, bytes_writer("".join(self._lines).encode()))
        self._unwritten, self._put_at = False, time.monotonic()


def steps_recorded(path: Path) -> int:
    """The last step that a metrics file tells of; 0 without one."""
    lines = _whole_lines(path)
    return int(json.loads(lines[-1])["step"]) if lines else 0


def follow_metrics(path: Path, finished: threading.Event) -> Iterator[dict[str, Any]]:
    """Look at a metrics file again and again, and yield its last line when that is new; `finished` is set before the
    last look."""
    position: tuple[int, int] = (-1, 0)
    is_away = False
    while True:
        last_look = finished.wait(_PUT_SECONDS if is_remote(path) else 0.5)
        look = _new_objects if is_remote(path) else _new_lines
        lines: list[str] = []
        try:
            with suppress(FileNotFoundError):  # not there yet
                lines, position = look(path, position)
            is_away = False
        except StorageError as error:
            if not is_away:
                log.warning("%s; training waits until it answers", error)
            is_away = True
        if lines:
            yield json.loads(lines[-1])
        if last_look:
            return


def _new_lines(path: Path, position: tuple[int, int]) -> tuple[list[str], tuple[int, int]]:
    """Behind (file number, offset): a run that was started again has another file there."""
    seen, offset = position
    lines = []
    with path.open(encoding="utf-8") as file:
        number = os.fstat(file.fileno()).st_ino
        file.seek(offset if number == seen else 0)
        offset = file.tell()
        while (line := file.readline()).endswith("\n"):
            lines.append(line)
            offset = file.tell()
    return lines, (number, offset)


def _new_objects(path: Path, position: tuple[int, int]) -> tuple[list[str], tuple[int, int]]:
    """Behind so many lines; fewer than before are those of a run that was started again."""
    lines, (_, seen) = _whole_lines(path), position
    return lines[seen if len(lines) >= seen else 0 :], (0, len(lines))


def _whole_lines(path: Path) -> list[str]:
    with open_folder(path.parent) as folder:
        content = folder.read(path.name) or b""
    return [line for line in content.decode().splitlines(keepends=True) if line.endswith("\n")]
