"""Do time and memory of generate and label stay in proportion with the rows? `python -m benchmarks.scale`

Problems made on the spot go through both stages, as commands of their own, with a generator that computes nothing: what
is left is what the project itself adds. Peak memory is of all processes of a command together, Ray's too, shared pages
counted once (PSS, looked at twice a second); CPU seconds are of all of them too, so that they do not depend on what
else the machine does. A second table has 1, 2 and 4 workers, computing (bounded by the cores of
the machine) and waiting as for an engine on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import common, fresh
from benchmarks.fresh import Figures
from prm_ray.embeddedmodel import EMBEDDED
from prm_ray.models import resolve_model
from prm_ray.tables import StageFolder

STAGES = ("generate", "label")
NUM_TEST = 100
_ROWS_AT_ONCE = 100_000
COLUMNS = (
    "rows",
    "workers",
    "ms a prompt",
    *(f"{stage} {what}" for what in ("s", "rows/s", "CPU s", "GiB") for stage in STAGES),
)
_CONFIG = """
[run]
dir = "{folder}/run"
[model]
name = "{model}"
[problems]
train = "{folder}/train.parquet"
test = "{folder}/test.parquet"
[generate]
backend = "benchmarks.scale_generator:NoOp"
engine_options = {{ seconds_per_prompt = {seconds_per_prompt} }}
num_samples = 1
problems_per_shard = {per_shard}
num_engines = {workers}
[label]
judge = "exact"
num_workers = {workers}
"""


def measure(folder: Path, rows: int, workers: int, seconds_per_prompt: float, per_shard: int) -> Figures:
    """Both stages over so many problems; stops if a row is missing, double or judged wrongly."""
    folder.mkdir()
    write_problems(folder / "train.parquet", range(rows - NUM_TEST))
    write_problems(folder / "test.parquet", range(rows - NUM_TEST, rows))
    config = folder / "run.toml"
    model = str(resolve_model(EMBEDDED))
    config.write_text(
        _CONFIG.format(
            folder=folder, model=model, seconds_per_prompt=seconds_per_prompt, per_shard=per_shard, workers=workers
        )
    )
    figures: Figures = {"rows": rows, "workers": workers, "seconds_per_prompt": seconds_per_prompt}
    for stage in STAGES:
        figures[stage] = _command(stage, config) | {"seconds": _manifest(folder, stage)["seconds"]}
    labels = _manifest(folder, "label")
    assert labels["rows_out"] == rows and not labels["failed"], labels
    assert labels["details"]["correct"] == rows // 10, labels
    return figures


def write_problems(path: Path, numbers: range) -> None:
    """Each is another text, and one in ten has the answer that the generator gives."""
    schema = pa.schema([("problem", pa.string()), ("answer", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(numbers), _ROWS_AT_ONCE):
            some = numbers[start : start + _ROWS_AT_ONCE]
            texts = [f"A train passes {number:,} posts on its way. What is the last digit of that?" for number in some]
            writer.write_table(pa.table([texts, [str(number % 10) for number in some]], schema))


def _command(stage: str, config: Path) -> Figures:
    """Seconds from start to end, CPU seconds of all processes, and GiB at most: of all, and of the largest one."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = subprocess.Popen([sys.executable, "-m", "prm_ray", stage, str(config)], env=environment)
    peak = largest = 0
    cpu_seconds: dict[int, float] = {}
    while command.poll() is None:
        sizes = []
        for process in _family(command.pid):
            try:
                sizes.append(process.memory_full_info().pss)
                cpu_seconds[process.pid] = sum(process.cpu_times()[:2])
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        peak, largest = max(peak, sum(sizes)), max([largest, *sizes])
        time.sleep(0.5)
    assert command.returncode == 0, f"{stage} ended with {command.returncode}"
    return {
        "command_seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(sum(cpu_seconds.values()), 1),
        "peak_gib": peak / 2**30,
        "largest_process_gib": largest / 2**30,
    }


def _family(pid: int) -> list[psutil.Process]:
    try:
        command = psutil.Process(pid)
        return [command, *command.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _manifest(folder: Path, stage: str) -> dict[str, Any]:
    return StageFolder(folder / "run", stage).manifest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--workers", type=int, default=2, help="data workers for --rows (default: 2)")
    parser.add_argument("--speedup-rows", type=int, default=100_000, help="rows of the table of 1, 2 and 4 workers")
    parser.add_argument("--seconds-per-prompt", type=float, default=0.001, help="of the waiting generator there")
    parser.add_argument("--per-shard", type=int, default=5000, help="problems of a shard (default: 5000)")
    parser.add_argument("--dir", type=Path, help="keep everything in this new folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cases = [(rows, args.workers, 0.0) for rows in args.rows]
    if args.speedup_rows:
        waits = (0.0, args.seconds_per_prompt)
        cases += [(args.speedup_rows, workers, seconds) for seconds in waits for workers in (1, 2, 4)]
    with fresh.shared_folder() as temporary:
        where = args.dir or temporary
        where.mkdir(exist_ok=True)
        found = []
        for number, (rows, workers, seconds) in enumerate(cases):
            found.append(measure(where / str(number), rows, workers, seconds, args.per_shard))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    common.print_table("generate and label, a generator that computes nothing", COLUMNS, list(map(_words, found)))
    if args.out:
        args.out.write_text(json.dumps({"machine": common.machine(), "cases": found}, indent=2) + "\n")


def _words(figures: Figures) -> list[str]:
    stages = [figures[stage] for stage in STAGES]
    return [
        f"{figures['rows']:,}",
        str(figures["workers"]),
        f"{figures['seconds_per_prompt'] * 1000:g}",
        *(f"{stage['seconds']:.0f}" for stage in stages),
        *(f"{figures['rows'] / stage['seconds']:,.0f}" for stage in stages),
        *(f"{stage['cpu_seconds']:.0f}" for stage in stages),
        *(f"{stage['peak_gib']:.2f}" for stage in stages),
    ]


if __name__ == "__main__":
    main()
