"""Disks of a test's own: small ones, and folders that not all machines see."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prm_ray.errors import TakenOverError
from prm_ray.tables import StageFolder


@contextmanager
def memory_disk(folder: Path, options: str) -> Iterator[Path]:
    """An empty disk (tmpfs) at a new folder, with mount's options for it. Skips the test without the right to mount."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class SeenHereOnly(StageFolder):
    """A folder that lies on the driver's machine alone."""

    def check(self) -> None:
        if "RayTrainWorker" in Path("/proc/self/cmdline").read_text():
            raise TakenOverError("there is no such folder")
        super().check()
