"""What a stage hands back to be counted in its manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.parquetfiles import read_parquet
from prm_ray.tables import StageFolder, count_failures


@dataclass(frozen=True)
class StageResult:
    """Figures of a finished stage: `failed` counts rows per reason (the error text up to its first colon)."""

    rows_in: int
    rows_out: int
    failed: dict[str, int]
    tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)


def count_parts(folder: StageFolder, error_columns: tuple[str, ...], tokens_column: str | None = None) -> StageResult:
    """Count what lies in the folder's parts, those of an earlier, killed start included.

    `rows_in` equals `rows_out`. `tokens` is the total length of the lists in `tokens_column`; with it come, in
    `details`, `prompt_tokens`: the prompts of rows that have such a list, each once for all its rows in a part.
    """
    rows, tokens, prompt_tokens = 0, 0, 0
    failed: dict[str, int] = {}
    for index in folder.finished_parts():
        columns = [*error_columns, *([tokens_column, "prompt_id", "prompt_tokens"] if tokens_column else [])]
        table = read_parquet(folder.part_path(index), columns)
        rows += table.num_rows
        for column in error_columns:
            for reason, count in count_failures(table.select([column]).to_pylist(), column).items():
                failed[reason] = failed.get(reason, 0) + count
        if tokens_column:
            tokens += pc.sum(pc.list_value_length(table[tokens_column])).as_py() or 0
            prompt_tokens += _prompt_tokens(table.filter(pc.is_valid(table[tokens_column])))
    details = {"prompt_tokens": prompt_tokens} if tokens_column else {}
    return StageResult(rows, rows, failed, tokens, details)


def _prompt_tokens(table: pa.Table) -> int:
    lengths = pa.table({"id": table["prompt_id"], "length": pc.list_value_length(table["prompt_tokens"])})
    once = lengths.group_by("id").aggregate([("length", "max")])
    return pc.sum(once["length_max"]).as_py() or 0
