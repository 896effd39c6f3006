"""Sends work as jobs: one job, the same again when it failed, or a chain with a job a stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.runlog import log
from prm_ray.submitting.jobs import Jobs, Surroundings, exit_code, how_it_ended
from prm_ray.submitting.work import VERB_KEY, WORDS_KEY, Work
from prm_ray.tables import StageFolder

_BAD_INPUT = 2
_RETRY_SECONDS = 5.0
"""Between a job that failed and the next try: what lost a node needs a moment to know."""

_AFTER_A_CHAIN = "; the chain ends behind it, and the same command (without --fresh) goes on from there"


@dataclass(frozen=True)
class Sender:
    jobs: Jobs
    around: Surroundings
    name: str | None = None
    """The id that the user wants, and of a chain its beginning."""
    retries: int = 0
    force: bool = False

    def submit(self, work: Work, name: str | None = None) -> str:
        """Submit one job and return its id. Raises `UserError` if another job writes into the same folder."""
        if work.writes and not self.force and (other := self.jobs.running_in(work.folder)):
            raise UserError(_in_use(work.folder, other))
        name = name or self.name or work.new_id()
        self.jobs.send(work, self.around, name)
        return name

    def run(self, work: Work, name: str | None = None, behind: str = "") -> int:
        """Submit a job, or take the one of this name; follow it and return its exit code.

        A job that failed is submitted again, `retries` times: what is finished stays. Not one with bad input, which
        would fail again, and not one that was stopped.
        """
        retries = self.retries
        name = name or self.submit(work)
        while True:
            with _says_how_to_go_on(name, behind):
                job = self.jobs.follow(name)
            log.info("job %s %s", name, how_it_ended(job))
            code = exit_code(job)
            if not retries or job.status != "FAILED" or code == _BAD_INPUT:
                return code
            retries -= 1
            log.info("again, and then %d more times at most", retries)
            time.sleep(_RETRY_SECONDS)
            work = work.again()
            name = self.submit(work, self.jobs.free_name(name))

    def run_chain(self, work: Work) -> int:
        """Each stage of a run as a job, submitted when the one before it has succeeded; return the first exit code that
        is not 0.

        A job that a killed chain has left running is followed, not submitted again.
        """
        running = self.jobs.running_in(work.folder)
        stages, redone = _stages(work)
        attached = running if running is not None and not redone and _is_of_chain(running, work, stages) else None
        for stage in stages if attached is None else stages[stages.index(attached.metadata[VERB_KEY]) :]:
            log.info("chain: %s, stage %d of %d", stage, stages.index(stage) + 1, len(stages))
            part = work.stage(stage, fresh=stage == redone)
            name = attached.submission_id if attached else self.submit(part, self._name_of(part))
            attached = None
            if code := self.run(part, name, _AFTER_A_CHAIN):
                return code
        return 0

    def _name_of(self, part: Work) -> str | None:
        """A chain that goes on finds the ids of its first try taken."""
        return self.jobs.free_name(f"{self.name}-{part.verb}") if self.name else None


def _in_use(folder: str, job: Any) -> str:
    verb, name = job.metadata[VERB_KEY], job.submission_id
    return (
        f"{folder!r} is in use: job {name} ({verb}) is {job.status} there; "
        f"follow it (prm-ray logs {name} --follow), stop it (prm-ray stop {name}), or submit with --force"
    )


def _stages(work: Work) -> tuple[tuple[str, ...], str | None]:
    """Stages of the chain that are not finished, as far as this machine sees the run's folder, and the one to redo.

    What it does not see its job skips by itself, some seconds later.
    """
    assert work.config is not None
    stages = work.config.stages()
    if work.fresh is None:
        return tuple(stage for stage in stages if not _is_done(work.config, stage)), None
    first = stages[0] if work.fresh == "all" else work.fresh
    if first not in stages:
        raise UserError(f"--fresh {first}: this chain has the stages {', '.join(stages)}")
    place = stages.index(first)
    return (*(each for each in stages[:place] if not _is_done(work.config, each)), *stages[place:]), first


def _is_done(config: RunConfig, stage: str) -> bool:
    return StageFolder(config.run.dir, stage).is_done()


def _is_of_chain(job: Any, work: Work, stages: tuple[str, ...]) -> bool:
    return job.metadata[WORDS_KEY] == work.metadata[WORDS_KEY] and job.metadata[VERB_KEY] in stages


@contextmanager
def _says_how_to_go_on(name: str, behind: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        log.info("job %s goes on%s", name, behind)
        log.info("  follow it: prm-ray logs %s --follow", name)
        log.info("  stop it:   prm-ray stop %s", name)
        raise SystemExit(130) from None
