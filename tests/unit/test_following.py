"""A job's log followed on a cluster that is made up: over broken connections, silence, and the end of the cluster."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from prm_ray.errors import ClusterError
from prm_ray.submitting import following
from prm_ray.submitting import sender as submitting_sender
from prm_ray.submitting.following import JobGoneError
from prm_ray.submitting.jobs import Jobs
from tests.unit.test_sender import Cluster, Job, sender, work


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(submitting_sender, "_RETRY_SECONDS", 0.0)


def test_a_log_whose_connection_breaks_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cluster = Cluster()
    broken = [["first\nsec", ConnectionResetError("gone")], [OSError("refused")], ["first\n", "second\nthird\n"]]
    cluster.connections = iter(broken)
    assert sender(cluster).run(work(tmp_path)) == 0
    assert capsys.readouterr().out == "first\nsecond\nthird\n"


def test_a_cluster_that_stays_away_is_given_up_and_the_job_said_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(following, "_LOST_SECONDS", 0.05)
    cluster = Cluster()
    cluster.connections = itertools.repeat([OSError("refused")])
    with pytest.raises(
        ClusterError, match=r"http://cluster does not answer: refused.*goes on: prm-ray logs mine --follow"
    ):
        sender(cluster, name="mine").run(work(tmp_path))


class Silent(Cluster):
    """Says nothing and answers nothing, as a machine that lost power: no connection to it ever breaks."""

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        yield "first\n"
        await asyncio.sleep(3600)

    def get_job_info(self, name: str) -> Job:
        time.sleep(3600)
        raise AssertionError

    def list_jobs(self) -> list[Job]:
        time.sleep(3600)
        raise AssertionError


def test_a_head_that_lost_power_is_noticed_and_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    for name, seconds in (("_SILENT_SECONDS", 0.05), ("_ANSWERS_WITHIN_SECONDS", 0.1), ("_LOST_SECONDS", 0.2)):
        monkeypatch.setattr(following, name, seconds)
    with pytest.raises(ClusterError, match=r"nothing within 0.1 s. .*lost its head.* submit the same again"):
        Jobs(Silent()).follow("mine")


def test_a_log_that_says_nothing_for_long_is_followed_while_the_cluster_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Slow(Cluster):
        """Its connection breaks after ten minutes of silence, in which it was asked for the job again and again."""

        now, num_asked, has_broken = 0.0, 0, False

        def seconds(self) -> float:
            """A clock that goes on by a second whenever somebody looks."""
            self.now += 1
            return self.now

        def get_job_info(self, name: str) -> Job:
            self.num_asked += 1
            return super().get_job_info(name)

        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            if not self.has_broken:
                while self.now < 600:
                    await asyncio.sleep(0.001)
                self.has_broken = True
                raise OSError("broken")
            async for piece in super().tail_job_logs(name):
                yield piece

    cluster = Slow()
    monkeypatch.setattr(following, "_LOOK_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=cluster.seconds, sleep=lambda seconds: None))
    assert sender(cluster).run(work(tmp_path)) == 0
    assert cluster.num_asked >= 10 and capsys.readouterr().out == "first\nsecond\n"


class Replaced(Cluster):
    """Loses its head, and with it every job, when the first one is followed; another head answers at its address."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[Job] = []

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        if self.jobs and not self.lost:
            self.lost, self.jobs = self.jobs, []
            yield "first\n"
            raise ConnectionResetError("gone")
        self.get_job_info(name)
        async for piece in super().tail_job_logs(name):
            yield piece

    def get_job_info(self, name: str) -> Job:
        if name not in [job.submission_id for job in self.jobs]:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return super().get_job_info(name)


def test_a_job_that_went_with_its_cluster_is_submitted_to_the_next_one_there_if_tries_are_left(tmp_path: Path):
    cluster = Replaced()
    assert sender(cluster, retries=1).run(work(tmp_path, fresh="train")) == 0
    assert [job.entrypoint.endswith("--fresh=train") for job in (*cluster.lost, *cluster.jobs)] == [True, False]


def test_a_job_that_went_with_its_cluster_is_said_to_be_gone_at_once(tmp_path: Path):
    with pytest.raises(JobGoneError, match=r"http://cluster has no job mine any more: .*submit the same again"):
        sender(Replaced(), name="mine").run(work(tmp_path))
