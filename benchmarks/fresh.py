"""Runs a function of a benchmark in a process of its own, so that peak memory and warmth of caches are its own.

A measured function takes a `Setting` and a folder that all processes of a run share, and returns what fits into JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Setting

Figures = dict[str, Any]
_ROOT = Path(__file__).resolve().parents[1]
_MAX_RUNS = 20


@contextmanager
def shared_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prm_ray_benchmark_") as folder:
        yield Path(folder)


def run_fresh(target: str, setting: Setting, folder: Path) -> Figures:
    """Run `module:function`. A process that fails gives {"error": its last line}: running out of memory is a result."""
    job, result = folder / "job.json", folder / "result.json"
    job.write_text(json.dumps({"target": target, "setting": asdict(setting)}), encoding="utf-8")
    result.unlink(missing_ok=True)
    threads = {"OMP_NUM_THREADS": str(setting.threads), "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.fresh", str(folder)],
        env=os.environ | threads | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    lines = ended.stdout.strip().splitlines()
    reason = f"killed by signal {-ended.returncode}" if ended.returncode < 0 else (lines or ["no output"])[-1]
    print(f"{target} failed: {reason}", file=sys.stderr)
    return {"error": reason}


def run_rounds(targets: Sequence[str], setting: Setting, folder: Path, repeats: int) -> dict[str, Figures]:
    """Each target `repeats` times, every other round in reverse order; times of all runs together."""
    runs: dict[str, list[Figures]] = {target: [] for target in targets}
    for number in range(repeats):
        for target in targets if number % 2 == 0 else reversed(targets):
            print(f"round {number + 1}/{repeats}: {target.split(':')[1]}", file=sys.stderr, flush=True)
            runs[target].append(run_fresh(target, setting, folder))
    return {target: _joined(figures) for target, figures in runs.items()}


def _joined(runs: Sequence[Figures]) -> Figures:
    failed = next((run for run in runs if "error" in run), None)
    if failed:
        return failed
    joined = dict(runs[0])
    joined["all_seconds"] = [second for run in runs for second in run["all_seconds"]]
    for key in ("peak_gib", "work_gib"):
        joined[key] = max(run[key] for run in runs)
    return joined


def measure(work: Callable[[], Any], warm_up: Callable[[], Any], seconds: float) -> tuple[Figures, Any]:
    """Times of `work` and its peak memory after `warm_up`; and what `work` returned at last.

    On a GPU the warm-up is the work itself, so that nothing is compiled within the measured time.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    (work if on_gpu else warm_up)()
    memory = Memory()
    times: list[float] = []
    result = None
    while not times or (sum(times) < seconds and len(times) < _MAX_RUNS):
        result = None
        start = time.perf_counter()
        result = work()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"all_seconds": times, **memory.figures()}, result


class Memory:
    """Peak memory from now on: of the GPU's allocator, else what this process and its children keep in memory."""

    def __init__(self) -> None:
        import torch

        gc.collect()
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what loading left behind is no memory of the work
        for process in _family():
            try:
                (process / "clear_refs").write_text("5")  # forgets the peak so far, e.g. that of loading
            except OSError:
                continue  # then the peak includes loading
        self._before = _resident("VmRSS")

    def figures(self) -> Figures:
        """GiB: the peak, and by how much it was above what was there before the work, mostly the weights."""
        import torch

        peak = torch.cuda.max_memory_allocated() if self._on_gpu else _resident("VmHWM")
        return {"peak_gib": peak / 2**30, "work_gib": max(0, peak - self._before) / 2**30}


def _family() -> list[Path]:
    """This process and all below it, as folders of /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
    family = [os.getpid()]
    for process in family:  # grows while it is read
        family += [child for child, parent in parents.items() if parent == process]
    return [Path("/proc") / str(process) for process in family]


def _resident(field: str) -> int:
    """Bytes of a field of /proc/*/status, added up over this process and its children."""
    total = 0
    for process in _family():
        try:
            lines = (process / "status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
    return total


def small(setting: Setting) -> Setting:
    """The same for a warm-up on a CPU: two short candidates."""
    return replace(setting, num_prompts=1, n=2, prompt=min(setting.prompt, 32), response=min(setting.response, 32))


def main() -> None:
    import torch

    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    setting = Setting(**job["setting"])
    torch.set_num_threads(setting.threads)
    module, _, name = job["target"].partition(":")
    figures = getattr(importlib.import_module(module), name)(setting, folder)
    (folder / "result.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
