"""The problems of a run on their way to the workers: in files beside the table, so that no process holds them all.

Whoever starts the run is the only one who reads where they come from; workers on other machines need not see that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from prm_ray.config import RunConfig
from prm_ray.parquetfiles import read_row_group, row_group_writer
from prm_ray.problems import Problem, iter_problems
from prm_ray.tables import StageFolder

Task = tuple[str, Problem]
"""(split, problem)"""

_PROBLEMS_A_FILE = 65_536
_SCHEMA = pa.schema(
    [("split", pa.string()), ("problem", pa.string()), ("answer", pa.string()), ("row", pa.int64())],
)


class StoredProblems(Sequence[list[Task]]):
    """Shard -> its problems, read when asked for. Picklable, and small however many there are."""

    def __init__(self, files: list[Path], shards_per_file: int, num_shards: int, num_problems: int):
        self._files, self._shards_per_file, self._num_shards = files, shards_per_file, num_shards
        self.num_problems = num_problems

    def __len__(self) -> int:
        return self._num_shards

    def __getitem__(self, shard: int) -> list[Task]:  # type: ignore[override]
        if not 0 <= shard < self._num_shards:
            raise IndexError(shard)
        number, group = divmod(shard, self._shards_per_file)
        rows = read_row_group(self._files[number], group).to_pylist()
        return [(row["split"], Problem(row["problem"], row["answer"], row=row["row"])) for row in rows]


def store_problems(config: RunConfig, folder: StageFolder, problems_per_shard: int) -> StoredProblems:
    """Cut the problems of both splits, train first, into shards, and put them where this attempt's workers find them.

    Raises `UserError` where a source is broken.
    """
    shards = _cut(_tasks(config), problems_per_shard)
    per_file = max(1, _PROBLEMS_A_FILE // problems_per_shard)
    files: list[Path] = []
    sizes: list[int] = []
    while (first := next(shards, None)) is not None:
        tables = (_counted(shard, sizes) for shard in chain([first], islice(shards, per_file - 1)))
        writer = row_group_writer(tables, _SCHEMA)
        files.append(folder.write_draft(f".problems-{len(files):05d}.parquet", writer))
    return StoredProblems(files, per_file, len(sizes), sum(sizes))


def _tasks(config: RunConfig) -> Iterator[Task]:
    for split in ("train", "test"):
        yield from ((split, problem) for problem in iter_problems(config, split))


def _cut(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    tasks = iter(tasks)
    while shard := list(islice(tasks, size)):
        yield shard


def _counted(shard: list[Task], sizes: list[int]) -> pa.Table:
    sizes.append(len(shard))
    rows = [(split, problem.problem, problem.answer, problem.row) for split, problem in shard]
    return pa.table([list(column) for column in zip(*rows, strict=True)], _SCHEMA)
