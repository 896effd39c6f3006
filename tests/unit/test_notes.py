"""Notes of what a worker began: in a bucket they are one count for all machines, whose own disks hold none of them."""

import asyncio
import tempfile
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from prm_ray.errors import EngineError
from prm_ray.folders import Notes
from prm_ray.objectstore import ObjectFolder, location
from prm_ray.stages import shards
from prm_ray.stages.asking import Answer
from prm_ray.stages.generate import GenerateWorker
from prm_ray.stages.shards import ShardStats, _ShardCalls
from prm_ray.tables import StageFolder
from tests.unit.test_asking import Died, Sampler, one_life, prompts, words
from tests.unit.test_attempts import attempt_at

pytest.importorskip("upath")


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageFolder:
    monkeypatch.setattr(shards, "keep_to_own_gpus", lambda: None)
    is_disk = request.param == "disk"
    return attempt_at(tmp_path if is_disk else location(f"memory://bucket-{uuid4().hex}/run"), "generate")


def at_next_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk knows nothing of what others have had on theirs."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(dir=tmp_path))


def left_in(folder: StageFolder) -> list[str]:
    """Notes that are still there."""
    if isinstance(folder.shared_workspace, type(Path())):
        return [path.name for path in folder.shared_workspace.glob(".*")]
    found = ObjectFolder(folder.shared_workspace)._fs.find(ObjectFolder(folder.shared_workspace)._root)
    return [name for name in found if "/." in name]


class Killer:
    """Dies at its shard but for one that is `well`."""

    def __init__(self, folder: StageFolder, well: bool = False):
        self._folder, self._well = folder, well

    def __call__(self, shard: int) -> ShardStats:
        if not self._well:
            raise Died
        self._folder.write_part(shard, [])
        return ShardStats(0)


def test_starts_of_a_shard_are_counted_over_all_machines(
    folder: StageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    batch = {"shard": np.array([3])}
    for _ in range(4):
        at_next_machine(tmp_path, monkeypatch)
        with pytest.raises(Died):
            _ShardCalls(folder, Killer, {"folder": folder}, 4, False)(batch)
    at_next_machine(tmp_path, monkeypatch)
    assert left_in(folder)
    with pytest.raises(EngineError, match="shard 3 of generate killed its worker 4 times"):
        _ShardCalls(folder, Killer, {"folder": folder}, 4, False)(batch)
    _ShardCalls(folder, Killer, {"folder": folder, "well": True}, 9, False)(batch)
    assert not left_in(folder) and folder.finished_parts() == [3]


def test_a_prompt_that_kills_engines_on_several_machines_is_set_aside(
    folder: StageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(4):
        at_next_machine(tmp_path, monkeypatch)
        with pytest.raises(Died):
            asyncio.run(one_life(Sampler(dies=[1]), {notes_of(folder): prompts(0, 1, 2)}))
        assert left_in(folder)
    at_next_machine(tmp_path, monkeypatch)
    (answers,) = asyncio.run(one_life(Sampler(dies=[1]), {notes_of(folder): prompts(0, 1, 2)}))
    assert words(answers) == ["0", "worker_died: 2 times when asked for this alone", "2"]
    assert not left_in(folder)


def notes_of(folder: StageFolder) -> Path:
    """Where a worker of `generate` keeps those of its shard."""
    asked: list[Path] = []

    class Asker:
        async def ask(self, _: object, notes: Path) -> list[Answer]:
            asked.append(notes)
            return []

    worker = GenerateWorker.__new__(GenerateWorker)
    worker._folder, worker._shards, worker._asker = folder, [[]], Asker()  # type: ignore[assignment]
    asyncio.run(worker.responses(0))
    return asked[0]


def test_notes_keep_their_order_and_are_gone_with_their_stage(folder: StageFolder):
    notes = Notes(folder.shared_workspace / ".asked-00000")
    for number in range(12):
        notes.add(f"line {number}")
    assert notes.lines() == [f"line {number}" for number in range(12)]
    folder.finish({})
    assert not left_in(folder)
