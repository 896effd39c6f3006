"""Jobs sent to a cluster that is made up: chains, retries, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from prm_ray.config import RunConfig
from prm_ray.errors import ClusterError, UserError
from prm_ray.submitting import following
from prm_ray.submitting import jobs as submitting_jobs
from prm_ray.submitting import sender as submitting_sender
from prm_ray.submitting.jobs import Jobs, Surroundings, exit_code, how_it_ended
from prm_ray.submitting.sender import Sender
from prm_ray.submitting.work import Work
from tests.tables_by_hand import mark_done


@dataclass
class Job:
    submission_id: str
    entrypoint: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    status: JobStatus = JobStatus.RUNNING
    driver_exit_code: int | None = None
    driver_node_id: str | None = "node"
    message: str = ""
    start_time: int = 0
    end_time: int | None = 3000


class Cluster:
    """Its jobs end when somebody follows them: with the codes of `codes`, in this order, then with 0."""

    def __init__(self, *codes: int):
        self.jobs: list[Job] = []
        self.codes = iter(codes)
        self.connections = iter([["first\n", "second\n"]] * 99)

    def get_address(self) -> str:
        return "http://cluster"

    def list_jobs(self) -> list[Job]:
        return self.jobs

    def submit_job(self, **job: Any) -> None:
        self.jobs.append(Job(start_time=len(self.jobs), **job))

    def get_job_info(self, name: str) -> Job:
        return next(job for job in self.jobs if job.submission_id == name)

    def stop_job(self, name: str) -> bool:
        """Ends what runs; a job that waits for room is ended when it gets some, which here it never does."""
        if (job := self.get_job_info(name)).status == JobStatus.RUNNING:
            job.status = JobStatus.STOPPED
        return True

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for piece in next(self.connections):
            if isinstance(piece, Exception):
                raise piece
            yield piece
        job = self.get_job_info(name)
        if job.status == JobStatus.RUNNING:
            job.driver_exit_code = next(self.codes, 0)
            job.status = JobStatus.FAILED if job.driver_exit_code else JobStatus.SUCCEEDED

    @property
    def verbs(self) -> list[str]:
        return [job.entrypoint.split()[3] for job in self.jobs]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(submitting_sender, "_RETRY_SECONDS", 0.0)


def work(tmp_path: Path, verb: str = "run", fresh: str | None = None, **sections: Any) -> Work:
    config = RunConfig.model_validate({"run": {"dir": tmp_path / "run"}, **sections})
    return Work(verb, ("run.toml",), str(tmp_path / "run"), ("run.toml",), fresh, config=config)


def sender(cluster: Cluster, **options: Any) -> Sender:
    return Sender(Jobs(cluster), Surroundings(Path("package.zip")), **options)


def test_a_chain_is_a_job_a_stage_in_order(tmp_path: Path):
    cluster = Cluster()
    assert sender(cluster, name="mine").run_chain(work(tmp_path)) == 0
    stages = ["generate", "label", "reference", "train", "score", "rerank", "evaluate"]
    assert cluster.verbs == stages
    assert [job.submission_id for job in cluster.jobs] == [f"mine-{stage}" for stage in stages]


def test_a_chain_ends_with_the_first_job_that_fails_and_its_exit_code(tmp_path: Path):
    cluster = Cluster(0, 2)
    assert sender(cluster).run_chain(work(tmp_path)) == 2
    assert cluster.verbs == ["generate", "label"]


def test_a_chain_that_goes_on_leaves_out_what_is_seen_to_be_finished_and_finds_other_ids(tmp_path: Path):
    cluster = Cluster(0, 0, 1)
    assert sender(cluster, name="mine").run_chain(work(tmp_path)) == 1
    mark_done(work(tmp_path).config, ["generate", "label"])
    assert sender(cluster, name="mine").run_chain(work(tmp_path)) == 0
    assert [job.submission_id for job in cluster.jobs][2:5] == ["mine-reference", "mine-reference-2", "mine-train"]


def test_a_chain_follows_the_job_that_a_killed_one_has_left_running(tmp_path: Path):
    cluster = Cluster()
    sender(cluster).submit(work(tmp_path).stage("score", fresh=False))
    assert sender(cluster).run_chain(work(tmp_path)) == 0
    assert cluster.verbs == ["score", "rerank", "evaluate"]


def test_a_job_whose_stage_is_finished_but_that_has_not_ended_is_waited_for(tmp_path: Path):
    cluster = Cluster()
    sender(cluster).submit(work(tmp_path).stage("score", fresh=False))
    mark_done(work(tmp_path).config, ["generate", "label", "reference", "train", "score"])
    assert sender(cluster).run_chain(work(tmp_path)) == 0
    assert cluster.verbs == ["score", "rerank", "evaluate"]


def test_a_chain_with_other_settings_is_refused_while_one_runs(tmp_path: Path):
    cluster = Cluster()
    name = sender(cluster).submit(work(tmp_path).stage("score", fresh=False))
    other = Work("run", ("run.toml", "train.beta=9"), str(tmp_path / "run"), (), config=work(tmp_path).config)
    with pytest.raises(UserError, match=f"is in use: job {name} .score. is RUNNING there; follow it"):
        sender(cluster).run_chain(other)


def test_a_chain_with_fresh_redoes_that_stage_once_and_all_behind_it(tmp_path: Path):
    cluster = Cluster()
    mark_done(work(tmp_path).config, ["generate", "label", "reference", "train", "score", "rerank", "evaluate"])
    assert sender(cluster).run_chain(work(tmp_path, fresh="score")) == 0
    assert [job.entrypoint.split()[3:] for job in cluster.jobs] == [
        ["score", "run.toml", "--fresh=all"],
        ["rerank", "run.toml"],
        ["evaluate", "run.toml"],
    ]


def test_a_second_job_in_the_same_folder_is_refused_unless_forced_and_a_server_is_not(tmp_path: Path):
    cluster = Cluster()
    first = sender(cluster).submit(work(tmp_path))
    with pytest.raises(UserError, match=f"is in use: job {first} .run. is RUNNING .* stop it .prm-ray stop {first}"):
        sender(cluster).submit(work(tmp_path, "train"))
    sender(cluster).submit(work(tmp_path, "serve"))
    sender(cluster, force=True).submit(work(tmp_path, "train"))
    assert cluster.verbs == ["run", "serve", "train"]


def test_a_run_of_an_experiment_that_is_at_work_is_in_use(tmp_path: Path):
    cluster, grid = Cluster(), Work("experiment", ("grid.toml",), str(tmp_path), ())
    first = sender(cluster).submit(grid)
    with pytest.raises(UserError, match=f"is in use: job {first} .experiment. is RUNNING there"):
        sender(cluster).submit(work(tmp_path, "train"))
    sender(cluster).submit(Work("train", ("run.toml",), f"{tmp_path}-2/run", ()))
    cluster.jobs[0].status = JobStatus.SUCCEEDED
    second = sender(cluster).submit(work(tmp_path, "train"))
    with pytest.raises(UserError, match=f"is in use: job {second} .train. is RUNNING there"):
        sender(cluster).submit(grid)


def test_a_killed_chain_with_fresh_says_that_its_words_go_on_without(tmp_path: Path):
    cluster = Cluster()
    sender(cluster).submit(work(tmp_path, fresh="score").stage("score", fresh=True))  # has not cleared anything yet
    mark_done(work(tmp_path).config, ["generate", "label", "reference", "train", "score", "rerank", "evaluate"])
    with pytest.raises(UserError, match=r"is in use: job .* which go on with it without --fresh"):
        sender(cluster).run_chain(work(tmp_path, fresh="score"))
    assert sender(cluster).run_chain(work(tmp_path)) == 0
    assert cluster.verbs == ["score", "rerank", "evaluate"]


def test_a_server_does_not_keep_others_out(tmp_path: Path):
    cluster = Cluster()
    sender(cluster).submit(work(tmp_path, "serve"))
    sender(cluster).submit(work(tmp_path, "search"))
    assert cluster.verbs == ["serve", "search"]


def test_an_id_that_is_taken_is_refused(tmp_path: Path):
    cluster = Cluster()
    assert sender(cluster, name="mine").run(work(tmp_path)) == 0
    with pytest.raises(UserError, match="--submission-id 'mine' is taken"):
        sender(cluster, name="mine").submit(work(tmp_path))


def test_a_failed_job_is_tried_again_without_fresh_until_it_succeeds(tmp_path: Path):
    cluster = Cluster(1, 137)
    assert sender(cluster, retries=3).run(work(tmp_path, fresh="train")) == 0
    assert [job.entrypoint.endswith("--fresh=train") for job in cluster.jobs] == [True, False, False]


def test_a_job_that_was_never_started_is_tried_again_with_fresh(tmp_path: Path):
    """No node had room for its process. Without it the next try would find the stage finished, and do nothing."""
    cluster = Cluster()
    name = sender(cluster).submit(work(tmp_path, fresh="train"))
    cluster.jobs[0].status, cluster.jobs[0].driver_node_id = JobStatus.FAILED, None
    assert sender(cluster, retries=1).run(work(tmp_path, fresh="train"), name) == 0
    assert [job.entrypoint.endswith("--fresh=train") for job in cluster.jobs] == [True, True]


@pytest.mark.parametrize(("codes", "num_jobs", "code"), [((1, 1, 1), 3, 1), ((2, 0), 1, 2)])
def test_tries_end_and_bad_input_is_not_tried_again(tmp_path: Path, codes: tuple[int, ...], num_jobs: int, code: int):
    cluster = Cluster(*codes)
    assert sender(cluster, retries=2).run(work(tmp_path)) == code
    assert len(cluster.jobs) == num_jobs


def test_it_is_said_how_often_a_job_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="prm_ray")
    sender(Cluster(1, 1, 1), retries=3).run(work(tmp_path))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("again")]
    assert said == [
        "again, and then 2 more times at most",
        "again, and then 1 more time at most",
        "again, for the last time",
    ]


def test_a_job_that_somebody_stopped_is_not_tried_again(tmp_path: Path):
    cluster = Cluster()
    name = sender(cluster).submit(work(tmp_path))
    cluster.jobs[0].status = JobStatus.STOPPED
    assert sender(cluster, retries=2).run(work(tmp_path), name) == 1
    assert len(cluster.jobs) == 1


def test_a_job_that_waits_for_room_is_asked_to_stop_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submitting_jobs, "_STARTS_WITHIN_SECONDS", 0.05)
    cluster = Cluster()
    running, waiting = (sender(cluster, force=True).submit(work(tmp_path)) for _ in range(2))
    cluster.jobs[1].status = JobStatus.PENDING
    assert Jobs(cluster).stop(running).status == JobStatus.STOPPED
    with pytest.raises(ClusterError, match=f"job {waiting} is PENDING still: no node has had room"):
        Jobs(cluster).stop(waiting)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_or_stop_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(jobs: Jobs, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "follow", interrupted)
    caplog.set_level("INFO")
    cluster = Cluster()
    with pytest.raises(SystemExit) as exit_info:
        sender(cluster, name="mine").run(work(tmp_path))
    assert exit_info.value.code == 130
    assert "job mine goes on\n" in caplog.text
    assert "prm-ray logs mine --follow" in caplog.text and "prm-ray stop mine" in caplog.text


@pytest.mark.parametrize(
    ("job", "code", "words"),
    [
        (Job("a", status=JobStatus.SUCCEEDED, driver_exit_code=0), 0, "succeeded after 3 s"),
        (Job("a", status=JobStatus.FAILED, driver_exit_code=2), 2, "failed with exit code 2 after 3 s"),
        (Job("a", status=JobStatus.FAILED, driver_exit_code=-9), 137, "failed with exit code 137 after 3 s"),
        (Job("a", status=JobStatus.FAILED, message="no such\nlabel"), 1, "failed after 3 s: no such label"),
        (Job("a", status=JobStatus.STOPPED), 1, "was stopped after 3 s"),
    ],
)
def test_how_a_job_ended_is_its_exit_code_and_a_few_words(job: Job, code: int, words: str):
    assert exit_code(job) == code and how_it_ended(job) == words
