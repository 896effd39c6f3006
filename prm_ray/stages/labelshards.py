"""What is labelled at a time: the training responses to a few problems, which all lie in one part of reference/.

Shards are smaller than the parts of reference/: eight completions from every step are far more work than the responses
themselves, and a kill loses what is in hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.config import RunConfig
from prm_ray.parquetfiles import read_parquet
from prm_ray.tables import StageFolder


@dataclass(frozen=True)
class LabelShard:
    """Problems of one part of reference/."""

    part: int
    prompt_ids: list[str]


def plan_shards(config: RunConfig) -> list[LabelShard]:
    """All training problems, in the order of reference/; the same table and settings give the same shards."""
    source, size = StageFolder(config.run.dir, "reference"), config.step_label.problems_per_shard
    shards: list[LabelShard] = []
    for part in source.finished_parts():
        table = read_parquet(source.part_path(part), ["prompt_id", "split"])
        ids = pc.unique(table.filter(pc.equal(table["split"], "train"))["prompt_id"]).to_pylist()
        shards += [LabelShard(part, ids[start : start + size]) for start in range(0, len(ids), size)]
    return shards


def read_shard(config: RunConfig, shard: LabelShard) -> list[dict[str, Any]]:
    """The rows of these problems, without step labels yet."""
    source = StageFolder(config.run.dir, "reference")
    table = read_parquet(source.part_path(shard.part))
    rows = table.filter(pc.is_in(table["prompt_id"], value_set=pa.array(shard.prompt_ids, pa.string()))).to_pylist()
    return [row | {"step_labels": None, "step_label_error": None} for row in rows]


def asked_rows(rows: list[dict[str, Any]], num_responses: int | None) -> list[dict[str, Any]]:
    """For each problem its first `num_responses` (none = all) responses whose outcome label is known.

    Those without one have no part in training, and their reason in `error` or `label_error`.
    """
    taken: Counter[str] = Counter()
    asked = []
    for row in sorted(rows, key=lambda row: row["sample_index"]):
        known = row["error"] is None and row["correct"] is not None
        if known and (num_responses is None or taken[row["prompt_id"]] < num_responses):
            taken[row["prompt_id"]] += 1
            asked.append(row)
    return asked
