"""Responses -> labels: what each response answers and whether that is right. One part in, one part out.

Input: the `responses/` table. Output: the same rows with `answer`, `correct` and, where `correct` is null, the reason
in `label_error`. A row that is an error already passes through unjudged.
"""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from prm_ray.answers import Judge
from prm_ray.config import RunConfig
from prm_ray.parquetfiles import read_parquet
from prm_ray.settings import LabelSection
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.tables import StageFolder, count_failures


def check(config: RunConfig) -> None:
    """Raises `UserError` if the judge does not load."""
    Judge(config.label).close()


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    source = StageFolder(config.run.dir, "generate")
    map_shards(
        folder,
        len(source.finished_parts()),
        LabelWorker,
        {"section": config.label, "source": source, "folder": folder},
        name="label",
        num_workers=config.label.num_workers,
    )
    counted = count_parts(folder, ("error", "label_error"))
    parts = (read_parquet(folder.part_path(part), ["correct"]) for part in folder.finished_parts())
    right = sum(pc.sum(part["correct"]).as_py() or 0 for part in parts)
    return StageResult(counted.rows_in, counted.rows_out, counted.failed, details={"correct": right})


class LabelWorker:
    """Judges one part after the other with one judge process."""

    def __init__(self, section: LabelSection, source: StageFolder, folder: StageFolder):
        self._source, self._folder = source, folder
        self._judge = Judge(section)

    def __call__(self, shard: int) -> ShardStats:
        rows = [judged(self._judge, row) for row in self._source.read_part(shard)]
        rows = self._folder.write_part(shard, rows)
        return ShardStats(len(rows), count_failures(rows, "label_error"))


def judged(judge: Judge, row: dict[str, Any]) -> dict[str, Any]:
    """The row with `answer`, `correct` and `label_error`; a row that is an error already is not judged."""
    answer, correct, label_error = (None, None, None) if row["error"] else judge(row["text"], row["gold_answer"])
    return row | {"answer": answer, "correct": correct, "label_error": label_error}
