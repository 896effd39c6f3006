"""Parquet files wherever they are: read with an error that says what to do, written whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from prm_ray.attempts import MANIFEST
from prm_ray.errors import StorageError, UserError
from prm_ray.folders import write_file
from prm_ray.objectstore import arrow_source, is_remote, reading_at
from prm_ray.storage import Write

_ROWS_AT_ONCE = 4096


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file. Raises `UserError` if it is truncated or not Parquet, `StorageError` if it cannot be read
    now and may be sound."""
    source, fs = arrow_source(path)
    with _readable(path):
        return pq.read_table(source, columns=columns, filesystem=fs)


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Row by row, of a file of any size. Raises as `read_parquet` does."""
    source, fs = arrow_source(path)
    with _readable(path), pq.ParquetFile(source, filesystem=fs) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def read_row_group(path: Path, group: int) -> pa.Table:
    """One of the tables that `row_group_writer` has written. Raises as `read_parquet` does."""
    source, fs = arrow_source(path)
    with _readable(path), pq.ParquetFile(source, filesystem=fs) as file:
        return file.read_row_group(group)


def column_names(path: Path) -> list[str]:
    """Columns of a Parquet file; one that an earlier version wrote may lack some. Raises as `read_parquet` does."""
    return read_schema(path).names


def read_schema(path: Path) -> pa.Schema:
    """Columns, and what the file says of itself. Raises as `read_parquet` does."""
    source, fs = arrow_source(path)
    with _readable(path):
        return pq.read_schema(source, filesystem=fs)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A store that does not answer, or a disk with an error, says nothing of the file: nobody is told to remove it."""
    with reading_at(path) if is_remote(path) else nullcontext():
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0].removesuffix(".")
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # Arrow's own have no number
                raise StorageError(f"{str(path)!r} cannot be read: {reason}") from None
            raise UserError(f"{str(path)!r} is not a readable Parquet file: {reason}{_advice(path)}") from None


def _advice(path: Path) -> str:
    if path.name.startswith("part-") and path.is_file():
        return f"; remove it and {MANIFEST} beside it, and run its stage again: the other parts are kept"
    return ""


def write_parquet(path: Path, table: pa.Table, drafts: Path | None = None) -> None:
    """Write one Parquet file whole or not at all; `drafts` as in `write_file`."""
    write_file(path, parquet_writer(table), drafts)


def row_group_writer(tables: Iterable[pa.Table], schema: pa.Schema) -> Write:
    """Writes one file, a row group a table, as the tables come."""

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))

    return write


def parquet_writer(table: pa.Table) -> Write:
    return partial(pq.write_table, table, compression="zstd")
