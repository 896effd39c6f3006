"""A training state is cut by rows over any number of files and read back by any number of workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prm_ray.trainerstate import StoredState, write_shard

MATRIX, VECTOR, STEP = torch.arange(35.0).view(7, 5), torch.arange(2.0), torch.tensor(3.0)


def rows_of(rank: int, num_workers: int) -> Callable[[int], slice]:
    def rows(length: int) -> slice:
        starts = [0, *(len(part) for part in torch.arange(length).chunk(num_workers))]
        ends = torch.tensor(starts).cumsum(0).tolist() + [length] * num_workers
        return slice(ends[rank], ends[rank + 1])

    return rows


def write(folder: Path, num_shards: int) -> None:
    for rank in range(num_shards):
        rows = rows_of(rank, num_shards)
        tensors = {"matrix": MATRIX[rows(7)], "vector": VECTOR[rows(2)], "step": STEP}
        write_shard(folder, tensors, rank, num_shards)


@pytest.mark.parametrize("num_written", [1, 2, 3, 4])
@pytest.mark.parametrize("num_readers", [1, 2, 3, 5])
def test_any_number_of_workers_reads_what_any_number_wrote(tmp_path: Path, num_written: int, num_readers: int) -> None:
    write(tmp_path, num_written)
    with StoredState(tmp_path) as stored:
        readers = [rows_of(rank, num_readers) for rank in range(num_readers)]
        assert torch.equal(torch.cat([stored.read("matrix", rows) for rows in readers]), MATRIX)
        assert torch.equal(torch.cat([stored.read("vector", rows) for rows in readers]), VECTOR)
        assert all(torch.equal(stored.read("step", rows), STEP) for rows in readers)
        assert "moment" not in stored


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "state-00001-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="holds 2 of 3 shards"):
        StoredState(tmp_path)
