"""Jobs in words: a table of all, or what is known of one."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

from prm_ray.config import MEASUREMENTS, STAGES
from prm_ray.runlog import duration
from prm_ray.submitting.jobs import exit_code, has_ended
from prm_ray.submitting.work import FOLDER_KEY, VERB_KEY, WORDS_KEY

_STAGE_LINE = re.compile(rf"^\S+ ({'|'.join((*STAGES, *MEASUREMENTS))}) +(?:starts|goes on|done|already done) ", re.M)
"""What the pipeline logs when a stage begins or ends."""
_NOBODYS = re.compile(r"\((?:autoscaler|raylet|gcs_server)\b")
"""How lines begin that are in every job's log, about other jobs too."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_TABLE = ("ID", "STATE", "WORK", "SINCE", "FOLDER")


def table(jobs: list[Any]) -> str:
    """A line a job, in the order given."""
    if not jobs:
        return "no jobs"
    rows = [_TABLE, *(_row(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TABLE))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def one_job(job: Any, log: str) -> str:
    """What a job is, how it stands, the stage it is at, and what it said last."""
    about = job.metadata or {}
    work = f"{about[VERB_KEY]} {about[WORDS_KEY]}" if VERB_KEY in about else job.entrypoint
    lines = [line.strip() for line in re.split(r"[\r\n]", _COLOUR.sub("", log)) if line.strip()]
    own = [line for line in lines if not _NOBODYS.match(line)]
    facts = {
        "job": job.submission_id,
        "state": f"{job.status}, {_since(job)}",
        "exit code": str(exit_code(job)) if has_ended(job) else None,
        "work": work,
        "stage": stage_in(log),
        "folder": about.get(FOLDER_KEY),
        "message": _message(job),
        "last line": own[-1] if own else None,
    }
    return "\n".join(f"{name:<9}  {value}" for name, value in facts.items() if value)


def stage_in(log: str) -> str | None:
    """The last stage that a job's log tells of."""
    found = _STAGE_LINE.findall(log)
    return found[-1] if found else None


def _message(job: Any) -> str:
    """Why a job waits, or has failed; the end of its log, which Ray puts behind that, is shown anyway."""
    if job.status in ("RUNNING", "SUCCEEDED"):
        return ""
    return " ".join((job.message or "").partition("last available logs")[0].rstrip(", ").split())


def _row(job: Any) -> tuple[str, ...]:
    about = job.metadata or {}
    work = about.get(VERB_KEY) or (job.entrypoint if len(job.entrypoint) <= 40 else job.entrypoint[:37] + "...")
    return job.submission_id, str(job.status), work, _since(job), about.get(FOLDER_KEY, "-")


def _since(job: Any) -> str:
    """`since 2026-11-29 14:03 (12 min)`, or when it ended and how long it took."""
    start, end = ((job.start_time or 0) / 1000, (job.end_time or 0) / 1000)
    if not has_ended(job):
        return f"since {_moment(start)} ({duration(time.time() - start)})"
    return f"ended {_moment(end)} ({duration(end - start)})"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
