"""Rows that the driver hands to the workers of a training, in a file of this attempt.

Workers map it, so those of a machine share its page cache in place of a copy each, and none needs what it was made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from prm_ray.objectstore import downloaded, is_remote
from prm_ray.storage import Write


def rows_writer(table: pa.Table) -> Write:
    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())  # a row is found at once in one chunk

    return write


def mapped_rows(path: Path) -> pa.Table:
    if is_remote(path):
        with downloaded(path) as here:
            return mapped_rows(here)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
