"""The tables stages meet in: folders, atomic parts, and the manifest that makes a folder count as finished.

A stage writes `part-00000.parquet`, `part-00001.parquet` ... each whole or not at all, and where none is yet: a part
that is there is finished work, never made twice and never changed, so that attempts that overlap work on one table.
All else that a stage makes lies in a workspace of its attempt until it is finished; then one attempt's work is put in
place, `manifest.json` last, which makes the folder finished. `started.json` remembers what an unfinished folder was
begun with, so that a changed config is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray import attempts
from prm_ray.attempts import FINISHED, MANIFEST, Attempt
from prm_ray.errors import StorageError, UserError
from prm_ray.folders import Folder, make_folder, open_folder, remove_folder, write_file
from prm_ray.objectstore import is_remote, location
from prm_ray.parquetfiles import parquet_writer, read_parquet, read_schema
from prm_ray.schemas import SCHEMAS
from prm_ray.storage import Write, json_writer, writing

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

FENCED = ("warmup", "train", "search")
"""Stages whose work is one stream, to which attempts cannot add side by side: only the newest may write."""

_COUNTS, _STARTED = "counts", "started.json"
BOOKKEEPING = (MANIFEST, _STARTED, FINISHED)
"""Files beside what a stage has made: when and by whom, which differs where the same was made twice."""


class StageFolder:
    """The folder of one stage of one run; `attempt` is the start of the run that may write in it, once it has begun.

    Writing raises `TakenOverError` if the folder was removed since, or, in a stage of `FENCED`, if a newer attempt has
    begun; and `StorageError` if the disk is full. Without an attempt, as tools and tests use it, nothing is asked.
    """

    def __init__(self, run_dir: str | Path, stage: str, attempt: Attempt | None = None):
        self.stage = stage
        self.path = (location(run_dir) if is_remote(run_dir) else Path(run_dir)) / FOLDERS[stage]
        self.attempt = attempt

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path.parent, self.stage, self.attempt))

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST

    @property
    def workspace(self) -> Path:
        """Where to write all but parts: `finish` puts what lies there in place. Hidden files are left out."""
        return self.path if self.attempt is None else attempts.workspace(self.path, self.attempt)

    @property
    def shared_workspace(self) -> Path:
        """The same where workers on other machines see it: of an object store an address, no folder of this machine."""
        return self.path if self.attempt is None else self.path / self.attempt.workspace

    def is_done(self) -> bool:
        return self.manifest_path.is_file()

    def manifest(self) -> dict[str, Any]:
        """What the finished stage wrote. Raises `UserError` if it is not finished."""
        if not self.is_done():
            raise UserError(f"{str(self.path)!r} is not finished; run the {self.stage} stage first")
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def begin(
        self, identity: dict[str, Any], defaults: dict[str, Any] | None = None, attempt: Attempt | None = None
    ) -> None:
        """Open for work by this attempt (none = a new one).

        A folder begun with other settings is refused, never mixed or silently thrown away. So is a link: what is
        behind it belongs to another run. Raises `TakenOverError` if a newer attempt is at work in a stage of `FENCED`.
        """
        if self.path.is_symlink():
            raise UserError(
                f"{str(self.path)!r} is a link to {str(self.path.parent / self.path.readlink())!r}, which is not "
                "finished: finish it there, or remove the link"
            )
        try:
            with writing(self.path):
                make_folder(self.path)
                self.check_identity(identity, defaults)
                attempt = attempt or attempts.draw(self.path.parent)
                attempts.enter(self.path, attempt, self._is_fenced)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"run.dir must be a folder, and {error.filename!r} is a file") from None
        except StorageError as error:
            raise UserError(f"run.dir cannot be used: {error}") from None
        self.attempt = attempt
        with self._held() as folder:
            if not folder.put_new(_STARTED, json_writer(identity)):
                self.check_identity(identity, defaults)
                folder.replace(_STARTED, json_writer(identity))

    @property
    def _is_fenced(self) -> bool:
        return self.stage in FENCED

    def check(self) -> None:
        """Raises `TakenOverError` if this attempt must not write any more."""
        with self._held():
            pass

    def _held(self) -> AbstractContextManager[Folder]:
        if self.attempt is None:
            return open_folder(self.path)
        return attempts.hold(self.path, self.attempt, self._is_fenced)

    def check_identity(self, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Raises `UserError` naming each setting that differs from what the folder was begun with, or if it is a file.

        A setting that did not exist then had its value of `defaults`, so a newer version goes on with an older folder.
        """
        if self.path.is_file():
            raise UserError(f"{str(self.path)!r} must be a folder, and is a file: move it away")
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
        """Put in place what lies in the workspace, the manifest last, unless another attempt was first to get here."""
        if self.attempt is None:
            write_json(self.manifest_path, manifest)
        else:
            attempts.finish(self.path, self.attempt, self._is_fenced, manifest)

    def complete(self) -> bool:
        """Is it finished, if need be by ending what an attempt that was killed in `finish` began?"""
        return attempts.complete(self.path)

    def has_predecessor(self) -> bool:
        """Other attempts have begun the stage before this one; they may still run."""
        if self.attempt is None:
            return False
        with self._held() as folder:
            return attempts.num_begun(folder) > 1

    def was_finished_by_another(self) -> bool:
        """This attempt need not go on: another one has finished the stage, and this one may build on that."""
        assert self.attempt is not None
        return self.complete() and attempts.is_current(self.path, self.attempt, self._is_fenced)

    def clear(self) -> None:
        """Remove the folder; of a link only the link itself: what is behind it belongs to another run."""
        if self.path.is_symlink():
            self.path.unlink()
        else:
            remove_folder(self.path)

    def clear_if_empty(self) -> None:
        """Remove a folder in which nothing was made: the next start may have other settings."""
        ours = {_STARTED, attempts.FOLDER, *([self.attempt.workspace] if self.attempt else [])}
        if {path.name for path in self.path.iterdir()} <= ours:
            self.clear()

    def part_path(self, index: int) -> Path:
        return self.path / f"part-{index:05d}.parquet"

    def finished_parts(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("part-")) for path in self.path.glob("part-*.parquet"))

    def write_part(
        self, index: int, rows: Sequence[dict[str, Any]], counts: dict[str, dict[str, int]] | None = None
    ) -> list[dict[str, Any]]:
        """Write one part; returns the rows that count: these, or those of an attempt that was first with this part.

        Missing columns are null, unknown ones an error. `counts` is work that no row shows; it lies in the file's own
        metadata, so it is there when the part is.
        """
        return list(rows) if self.put_part(index, rows, counts) else self.read_part(index)

    def put_part(
        self, index: int, rows: Sequence[dict[str, Any]], counts: dict[str, dict[str, int]] | None = None
    ) -> bool:
        """The same; False, and nothing is written, if this part is there already."""
        schema = SCHEMAS[self.stage]
        unknown = {key for row in rows for key in row} - set(schema.names)
        assert not unknown, f"columns {unknown} are not in the {self.stage} schema"
        table = pa.Table.from_pylist(list(rows), schema=schema)
        if counts is not None:
            table = table.replace_schema_metadata({_COUNTS: json.dumps(counts)})
        with self._held() as folder:
            return folder.put_new(self.part_path(index).name, parquet_writer(table))

    def write_json(self, name: str, value: Any) -> None:
        """What later attempts at an unfinished stage want to know of this one."""
        with self._held() as folder:
            folder.replace(name, json_writer(value))

    def write_draft(self, name: str, write: Write) -> Path:
        """Put a file where the workers of this attempt find it until the stage is finished; returns where that is."""
        inside = "" if self.attempt is None else f"{self.attempt.workspace}/"
        with self._held() as folder:
            folder.replace(f"{inside}{name}", write)
        return self.path / f"{inside}{name}"

    def has_part(self, index: int) -> bool:
        return self.part_path(index).is_file()

    def read_part(self, index: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
        return read_parquet(self.part_path(index), columns).to_pylist()

    def part_counts(self, index: int) -> dict[str, dict[str, int]]:
        """The `counts` a part was written with."""
        return json.loads((read_schema(self.part_path(index)).metadata or {}).get(_COUNTS.encode(), b"{}"))

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        for index in self.finished_parts():
            yield from self.read_part(index, columns)


def outcome_labels(table: pa.Table) -> pa.ChunkedArray:
    """The label that training takes of each row, float64: `soft_label` where there is one, else 1 or 0; null = none.

    A table without the column `soft_label`, as earlier versions wrote it, has none.
    """
    hard = pc.cast(table["correct"], pa.float64())
    return pc.coalesce(table["soft_label"], hard) if "soft_label" in table.column_names else hard


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_file(path, json_writer(value))


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
