"""The state of a training run on disk: a safetensors file a shard, read back by any number of workers.

Every tensor is cut by rows, as the weights are; who resumes reads the rows it holds, from whichever files they are in.
So a checkpoint of 4 workers can be continued by 3, and one of whole weights by sharded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prm_ray.errors import UserError

_SHARDS = "state-*-of-*.safetensors"
_ADVICE = "train from the start: --fresh and the name of the stage"


def write_shard(folder: Path, tensors: dict[str, Tensor], rank: int, num_shards: int) -> None:
    """Write this worker's rows of all tensors. A tensor without dimensions is the same on every worker."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / f"state-{rank:05d}-of-{num_shards:05d}.safetensors")


def is_whole(names: Iterable[str]) -> bool:
    """Are these the files that all workers have written?"""
    shards = [name for name in names if fnmatch(name, _SHARDS)]
    return bool(shards) and len(shards) == _num_shards(shards[0])


def _num_shards(name: str) -> int:
    return int(Path(name).stem.rpartition("-")[2])


class StoredState:
    """What `write_shard` wrote, open for reading. Raises `UserError` unless all shards are there, each whole."""

    def __init__(self, folder: Path):
        paths = sorted(folder.glob(_SHARDS))
        if not is_whole(path.name for path in paths):
            num_shards = _num_shards(paths[0].name) if paths else "no"
            raise UserError(f"{str(folder)!r} holds {len(paths)} of {num_shards} shards of a training state; {_ADVICE}")
        with ExitStack() as stack:
            self._files: list[Any] = [stack.enter_context(_open(path)) for path in paths]
            self._names = set(self._files[0].keys())
            self._stack = stack.pop_all()

    def __enter__(self) -> StoredState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def scalar(self, name: str) -> Tensor:
        return self._files[0].get_tensor(name)

    def read(self, name: str, rows: Callable[[int], slice]) -> Tensor:
        """The rows of a tensor that `rows` chooses once it knows their number; all of one without dimensions."""
        pieces = [file.get_slice(name) for file in self._files]
        lengths = [(piece.get_shape() or [0])[0] for piece in pieces]
        if not pieces[0].get_shape():
            return self.scalar(name)
        wanted = rows(sum(lengths))
        parts, offset = [], 0
        for piece, length in zip(pieces, lengths, strict=True):
            start, stop = max(wanted.start - offset, 0), min(wanted.stop - offset, length)
            if start < stop:
                parts.append(piece[start:stop])
            offset += length
        return torch.cat(parts) if parts else torch.empty(0, *pieces[0].get_shape()[1:])


def _open(path: Path) -> Any:
    """Notices a file that is cut off; single bytes that are wrong it does not."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"the training state {str(path)!r} is damaged ({error}); {_ADVICE}") from None
