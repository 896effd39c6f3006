"""The jobs of one cluster: sends work, follows it to its end, finds what runs in a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prm_ray.errors import ClusterError, UserError
from prm_ray.runlog import duration, log
from prm_ray.submitting.client import asking
from prm_ray.submitting.following import follow
from prm_ray.submitting.work import FOLDER_KEY, VERB_KEY, Work

FAILED = 1
_BY_SIGNAL = 128
"""What shells add to a signal's number to make an exit code of it."""
_LOOK_AGAIN_SECONDS = 1.0
_STOPS_WITHIN_SECONDS = 600.0
_STARTS_WITHIN_SECONDS = 15.0
"""How long a job that is asked to stop may take to start: Ray ends none before, and without room it may never start."""


@dataclass(frozen=True)
class Surroundings:
    """What a job runs with."""

    archive: Path
    """The zip file that becomes a job's folder: one for all jobs of a command, so that none has other code."""
    environment: dict[str, str] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    """`entrypoint_num_cpus` and the like, of the job's own process."""


class Jobs:
    """`client` is Ray's `JobSubmissionClient`, or what can do the same."""

    def __init__(self, client: Any):
        self._client = client
        self.address: str = client.get_address()

    def all(self) -> list[Any]:
        """Jobs that were submitted to the cluster (`JobDetails`), the newest first; not what others run on it."""
        with asking(self.address):
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def info(self, name: str) -> Any:
        """Raises `UserError` if there is no such job."""
        found = next((job for job in self.all() if job.submission_id == name), None)
        if found is None:
            raise UserError(f"there is no job {name!r} at {self.address}; prm-ray status lists those there are")
        return found

    def running_beside(self, work: Work) -> Any | None:
        """The job of ours that writes where this work would and has not ended, or None."""
        writing = [job for job in self.all() if not has_ended(job) and (job.metadata or {}).get(VERB_KEY) != "serve"]
        return next((job for job in writing if _meet(job.metadata or {}, work.metadata)), None)

    def free_name(self, name: str) -> str:
        """This name, or with a number behind it the first that no job has."""
        taken = {job.submission_id for job in self.all()}
        numbered = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
        return next(each for each in numbered if each not in taken)

    def send(self, work: Work, around: Surroundings, name: str) -> None:
        """Submit a job. Raises `UserError` if the id is taken."""
        environment = {
            "RAY_JOB_STOP_SIGNAL": "SIGINT",  # sent by Ray to a job that is stopped: to SIGTERM engines do not listen
            "RAY_JOB_STOP_WAIT_TIME_S": str(work.stop_seconds),
        }
        if any(job.submission_id == name for job in self.all()):
            raise UserError(f"--submission-id {name!r} is taken by a job of this cluster: choose another")
        with asking(self.address):
            self._client.submit_job(
                entrypoint=work.entrypoint,
                submission_id=name,
                metadata=work.metadata,
                runtime_env={"working_dir": str(around.archive), "env_vars": environment | around.environment},
                **around.resources,
            )
        log.info("job %s submitted to %s: %s", name, self.address, work.entrypoint)

    def follow(self, name: str) -> Any:
        """Print a job's log as it grows until the job has ended; return the job. Raises as `following.follow` does."""
        return follow(self._client, name)

    def log_text(self, name: str) -> str:
        with asking(self.address):
            return self._client.get_job_logs(name)

    def stop(self, name: str, within_seconds: float = _STOPS_WITHIN_SECONDS) -> Any:
        """Ask a job to stop and wait until it has; return the job. Raises `ClusterError` if it does not."""
        asked_at = time.monotonic()
        with asking(self.address):
            self._client.stop_job(name)
        while not has_ended(job := self.info(name)):
            waited = time.monotonic() - asked_at
            if job.status == "PENDING" and waited > _STARTS_WITHIN_SECONDS:
                raise ClusterError(_not_started(job))
            if waited > within_seconds:
                raise ClusterError(f"job {name} is {job.status} still, {within_seconds:g} s after it was asked to stop")
            time.sleep(_LOOK_AGAIN_SECONDS)
        return job


def _meet(one: dict[str, str], other: dict[str, str]) -> bool:
    """They write into one folder."""
    return one.get(FOLDER_KEY) == other[FOLDER_KEY] or _holds(one, other) or _holds(other, one)


def _holds(one: dict[str, str], other: dict[str, str]) -> bool:
    """One is an experiment, whose runs lie inside its folder, and the other works in there."""
    return one.get(VERB_KEY) == "experiment" and other.get(FOLDER_KEY, "").startswith(f"{one[FOLDER_KEY]}/")


def _not_started(job: Any) -> str:
    return (
        f"job {job.submission_id} is PENDING still: no node has had room for its own process (--entrypoint-num-gpus "
        "and the like), or its folder is being unpacked. Ray ends no job before that; it has the request, and ends "
        "this one as it starts, or by itself after 15 minutes"
    )


def has_ended(job: Any) -> bool:
    return job.status.is_terminal()


def was_started(job: Any) -> bool:
    """Of a job that has ended: its process was put on a node, so something of its work may be done."""
    return job.driver_node_id is not None


def exit_code(job: Any) -> int:
    """Of a job that has ended: its process's own, 128 + the signal's number if one ended it, 1 if none was started."""
    if job.status == "SUCCEEDED":
        return 0
    code = FAILED if job.driver_exit_code is None else job.driver_exit_code
    return code if code >= 0 else _BY_SIGNAL - code


def how_it_ended(job: Any) -> str:
    """`succeeded after 3 min`, `failed with exit code 2 after 8 s`, and where no process was started, why."""
    took = f"after {duration(((job.end_time or 0) - (job.start_time or 0)) / 1000)}"
    if job.status == "FAILED" and job.driver_exit_code is None:
        return f"failed {took}: {' '.join((job.message or 'no reason is known').split())}"
    return {
        "SUCCEEDED": f"succeeded {took}",
        "STOPPED": f"was stopped {took}",
        "FAILED": f"failed with exit code {exit_code(job)} {took}",
    }[str(job.status)]
