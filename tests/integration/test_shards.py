import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.data import DataContext

from prm_ray.config import RunConfig
from prm_ray.errors import EngineError, UserError
from prm_ray.stages import shards
from prm_ray.stages.cluster import Wanted, check_room
from prm_ray.stages.fit import FitPlan, fit
from prm_ray.stages.pipeline import known_cause
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.tables import StageFolder

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


class Worker:
    """Writes a part of one row; `mishap` happens at shard 2, `dies` only the first time."""

    def __init__(self, folder: StageFolder, mishap: str = ""):
        self._folder, self._mishap = folder, mishap
        if mishap == "bad start":
            raise UserError("the model is missing")
        if mishap == "never starts" or (mishap == "is sick once" and is_first_to_touch(folder.path / "sick")):
            raise EngineError("the GPU does not answer")

    def __call__(self, shard: int) -> ShardStats:
        marker = self._folder.path / "died-before"
        if shard == 2 and self._mishap == "dies" and not marker.exists():
            marker.touch()
            os._exit(1)
        if shard == 2 and self._mishap == "always dies":
            os._exit(1)
        if shard == 2 and self._mishap == "bad input":
            raise UserError("row 7 has no answer")
        if shard == 2 and self._mishap == "hangs":
            time.sleep(60)
        if shard == 0 and self._mishap == "is slow":
            wait_for(self._folder, 4)
        if shard == 3 and self._mishap == "is taken back":
            self._folder.part_path(1).unlink()
        self._folder.write_part(shard, [{"prompt_id": str(os.getpid()), "error": "odd: x" if shard == 1 else None}])
        return ShardStats(1, {"odd": 1} if shard == 1 else {}, tokens=10)


GPU_STAGE = """
import sys
import ray
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.tables import StageFolder

class Worker:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, shard):
        given = ray.get_runtime_context().get_assigned_resources()
        self.folder.write_part(shard, [{"prompt_id": f"{given['CPU']:g} CPU, {given['GPU']:g} GPU"}])
        return ShardStats(1)

ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
folder = StageFolder(sys.argv[1], "generate")
folder.begin({})
map_shards(folder, 1, Worker, {"folder": folder}, name="generate", num_workers=1, num_gpus=1)
print(*[row["prompt_id"] for row in folder.rows()])
"""


class AsyncWorker:
    """Waits until two shards are inside at the same time."""

    def __init__(self, folder: StageFolder):
        self._folder, self._inside = folder, 0

    async def __call__(self, shard: int) -> ShardStats:
        self._inside += 1
        start = time.monotonic()
        while self._inside < 2 and time.monotonic() - start < 300:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        self._folder.write_part(shard, [{"prompt_id": "x", "text": str(self._inside)}])
        return ShardStats(1)


def is_first_to_touch(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for(folder: StageFolder, num_parts: int) -> None:
    start = time.monotonic()
    while len(folder.finished_parts()) < num_parts and time.monotonic() - start < 300:
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path: Path, ray_local: None) -> StageFolder:
    folder = StageFolder(tmp_path, "generate")
    folder.begin({})
    return folder


def work(folder: StageFolder, mishap: str = "", num_shards: int = 4, num_workers: int = 1) -> list[ShardStats]:
    settings = {"folder": folder, "mishap": mishap}
    return map_shards(folder, num_shards, Worker, settings, name="generate", num_workers=num_workers, num_cpus=0.5)


def test_only_the_shards_without_a_part_are_done(folder: StageFolder):
    folder.write_part(1, [{"prompt_id": "from before"}])
    before = folder.part_path(1).stat().st_mtime_ns
    assert work(folder) == [ShardStats(1, {}, 10)] * 3
    assert folder.finished_parts() == [0, 1, 2, 3] and folder.part_path(1).stat().st_mtime_ns == before
    assert work(folder) == []


def test_a_worker_with_a_long_shard_leaves_the_others_to_its_fellow(folder: StageFolder):
    """Shard 0 ends only when all others are there: handed out in advance, some of them would wait behind it."""
    work(folder, "is slow", num_shards=5, num_workers=2)
    workers = {index: folder.read_part(index)[0]["prompt_id"] for index in range(5)}
    assert all(workers[index] != workers[0] for index in range(1, 5))


def test_a_worker_that_dies_is_started_again_and_its_shard_redone(folder: StageFolder):
    stats = work(folder, "dies")
    assert len(stats) == 4 and sum(one.failed.get("odd", 0) for one in stats) == 1
    assert folder.finished_parts() == [0, 1, 2, 3] and not list(folder.path.glob(".attempts-*"))
    assert len({row["prompt_id"] for row in folder.rows()}) == 2  # two processes


def test_a_shard_that_kills_every_worker_ends_the_stage(folder: StageFolder):
    with pytest.raises(Exception, match="shard 2 of generate killed its worker 4 times"):
        work(folder, "always dies")
    assert 2 not in folder.finished_parts()


def test_a_worker_that_does_not_start_is_replaced_and_the_stage_goes_on(
    folder: StageFolder, caplog: pytest.LogCaptureFixture
):
    assert len(work(folder, "is sick once", num_workers=3)) == 4 and folder.finished_parts() == [0, 1, 2, 3]
    (said,) = [message for message in caplog.messages if "did not start" in message]
    assert said.endswith("another one does in its place: prm_ray.errors.EngineError: the GPU does not answer")


def test_workers_that_never_start_end_the_stage_with_their_reason_in_one_line(folder: StageFolder):
    with pytest.raises(Exception) as raised:
        work(folder, "never starts", num_workers=2)
    cause = known_cause(raised.value)
    assert isinstance(cause, EngineError) and str(cause) == "the GPU does not answer"
    assert not folder.finished_parts()


@pytest.mark.parametrize(
    ("mishap", "message"), [("bad input", "^row 7 has no answer$"), ("bad start", "^the model is missing$")]
)
def test_a_user_error_in_a_worker_comes_through_as_itself(folder: StageFolder, mishap: str, message: str):
    with pytest.raises(UserError, match=message):
        work(folder, mishap)


def test_an_async_worker_has_several_shards_in_hand(folder: StageFolder):
    map_shards(folder, 4, AsyncWorker, {"folder": folder}, name="generate", num_workers=1, concurrency=2)
    assert any(row["text"] == "2" for row in folder.rows())


def test_more_than_any_machine_has_is_refused_and_not_waited_for(folder: StageFolder):
    with pytest.raises(UserError, match="generate needs 1 CPUs and 99 GPUs on one machine"):
        map_shards(folder, 1, Worker, {"folder": folder}, name="generate", num_workers=1, num_gpus=99)


def test_a_worker_with_a_gpu_has_a_cpu_too_and_ray_warns_of_nothing(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", GPU_STAGE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("1 CPU, 1 GPU\n") and "experimental" not in done.stderr, done.stdout + done.stderr


def test_a_shard_may_take_as_long_as_it_likes_unless_a_limit_is_set(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
):
    """Ray's own limit of half an hour would end a stage of large shards again and again, each time from nothing."""
    monkeypatch.setenv("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "3")
    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 3)  # read by Ray when it starts
    with pytest.raises(EngineError, match=r"no shard ended for 3 s \(RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S\)"):
        work(folder, "hangs")
    monkeypatch.delenv("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S")
    work(folder)
    assert DataContext.get_current().execution_no_progress_timeout_s == -1


def test_a_part_that_another_start_took_back_is_missed(folder: StageFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_LISTED_WITHIN_SECONDS", 0.5)
    with pytest.raises(EngineError, match="generate: 1 of 4 parts were removed while it worked; run the same again"):
        work(folder, "is taken back")
    assert len(work(folder)) == 1 and folder.finished_parts() == [0, 1, 2, 3]


def test_training_that_never_finds_its_workers_is_refused_and_not_waited_for(folder: StageFolder):
    """Ray Train would wait for ever, without a word."""
    config = RunConfig.model_validate({"train": {"num_workers": 999}})
    plan = FitPlan("train", folder, "nowhere", config, config.train, 0, make_data=list)
    with pytest.raises(UserError, match="train needs 1 CPUs and 0 GPUs on one machine for each of 999 workers"):
        fit(plan, 1)
    check_room(Wanted("train", 1, 0, num_workers=2))
