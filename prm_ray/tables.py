"""The tables stages meet in: folders, atomic parts, and the manifest that makes a folder count as finished.

A stage writes `part-00000.parquet`, `part-00001.parquet` ... each whole or not at all (temporary name, then rename).
A part that is there is finished work and is never made twice; the folder is finished when `manifest.json`, written
last, is there. `started.json` remembers what an unfinished folder was begun with, so that a changed config is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prm_ray.errors import UserError
from prm_ray.schemas import SCHEMAS

FOLDERS = {
    "warmup": "warmup",
    "generate": "responses",
    "label": "labels",
    "import": "labels",
    "reference": "reference",
    "step_label": "step_labels",
    "train": "checkpoint",
    "score": "scores",
    "rerank": "picks",
    "evaluate": "report",
    "processbench": "processbench",
    "policy": "policy",
    "search": "search",
}
"""Stage or measurement -> its folder under the run."""

_COUNTS = "counts"


class StageFolder:
    """The folder of one stage of one run."""

    def __init__(self, run_dir: str | Path, stage: str):
        self.stage = stage
        self.path = Path(run_dir) / FOLDERS[stage]

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path.parent, self.stage))

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def is_done(self) -> bool:
        return self.manifest_path.is_file()

    def manifest(self) -> dict[str, Any]:
        """What the finished stage wrote. Raises `UserError` if it is not finished."""
        if not self.is_done():
            raise UserError(f"{str(self.path)!r} is not finished; run the {self.stage} stage first")
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def begin(self, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Open for work; a folder begun with other settings is refused, never mixed or silently thrown away.

        So is a link: what is behind it belongs to another run.
        """
        if self.path.is_symlink():
            raise UserError(
                f"{str(self.path)!r} is a link to {str(self.path.parent / self.path.readlink())!r}, which is not "
                "finished: finish it there, or remove the link"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_identity(identity, defaults)
        write_json(self.path / "started.json", identity)

    def check_identity(self, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Raises `UserError` naming each setting that differs from what the folder was begun with.

        A setting that did not exist then had its value of `defaults`, so a newer version goes on with an older folder.
        """
        started = self.path / "started.json"
        if not started.is_file():
            return
        before = json.loads(json.dumps(defaults or {})) | json.loads(started.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(identity))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            lines = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
            raise UserError(
                f"{str(self.path)!r} was made with other settings ({lines}): "
                f"choose another run.dir, or redo from here on with --fresh {self.stage}"
            )

    def finish(self, manifest: dict[str, Any]) -> None:
        write_json(self.manifest_path, manifest)

    def clear(self) -> None:
        """Remove the folder; the manifest goes first, so a kill half-way leaves it unfinished, not wrong.

        Of a link only the link itself: what is behind it belongs to another run.
        """
        if self.path.is_symlink():
            self.path.unlink()
            return
        self.manifest_path.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def clear_if_empty(self) -> None:
        """Remove a folder in which nothing was made: the next start may have other settings."""
        if [path.name for path in self.path.iterdir()] == ["started.json"]:
            self.clear()

    def part_path(self, index: int) -> Path:
        return self.path / f"part-{index:05d}.parquet"

    def finished_parts(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("part-")) for path in self.path.glob("part-*.parquet"))

    def write_part(
        self, index: int, rows: Sequence[dict[str, Any]], counts: dict[str, dict[str, int]] | None = None
    ) -> None:
        """Write one part whole or not at all; missing columns are null, unknown ones an error.

        `counts` is work that no row shows; it lies in the file's own metadata, so it is there when the part is.
        """
        schema = SCHEMAS[self.stage]
        unknown = {key for row in rows for key in row} - set(schema.names)
        assert not unknown, f"columns {unknown} are not in the {self.stage} schema"
        table = pa.Table.from_pylist(list(rows), schema=schema)
        if counts is not None:
            table = table.replace_schema_metadata({_COUNTS: json.dumps(counts)})
        write_parquet(self.part_path(index), table)

    def read_part(self, index: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
        return read_parquet(self.part_path(index), columns).to_pylist()

    def part_counts(self, index: int) -> dict[str, dict[str, int]]:
        """The `counts` a part was written with."""
        return json.loads((pq.read_schema(self.part_path(index)).metadata or {}).get(_COUNTS.encode(), b"{}"))

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        for index in self.finished_parts():
            yield from self.read_part(index, columns)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file. Raises `UserError` if it is truncated or not Parquet."""
    with _readable(path):
        return pq.read_table(path, columns=columns)


def column_names(path: Path) -> list[str]:
    """Columns of a Parquet file; one that an earlier version wrote may lack some. Raises as `read_parquet` does."""
    with _readable(path):
        return pq.read_schema(path).names


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{str(path)!r} is not a readable Parquet file: {reason}") from None


def outcome_labels(table: pa.Table) -> pa.ChunkedArray:
    """The label that training takes of each row, float64: `soft_label` where there is one, else 1 or 0; null = none.

    A table without the column `soft_label`, as earlier versions wrote it, has none.
    """
    hard = pc.cast(table["correct"], pa.float64())
    return pc.coalesce(table["soft_label"], hard) if "soft_label" in table.column_names else hard


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write one Parquet file whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def count_failures(rows: Iterable[dict[str, Any]], column: str) -> dict[str, int]:
    """Rows per reason: the text of an error column up to its first colon."""
    counts: dict[str, int] = {}
    for row in rows:
        if reason := row.get(column):
            key = reason.split(":", 1)[0]
            counts[key] = counts.get(key, 0) + 1
    return counts


def in_words(counts: Mapping[str, int]) -> str:
    """`2 prompt too long, 1 timeout`, of rows by reason; `none` of none."""
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items()) or "none"
