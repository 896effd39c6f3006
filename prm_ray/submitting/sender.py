"""Sends work as jobs: one job, the same again when it failed, or a chain with a job a stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prm_ray.errors import UserError
from prm_ray.runlog import log
from prm_ray.submitting.following import JobGoneError
from prm_ray.submitting.jobs import Jobs, Surroundings, exit_code, how_it_ended, was_started
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
        if work.writes and not self.force and (other := self.jobs.running_beside(work)):
            raise UserError(_in_use(work.folder, other))
        name = name or self.name or work.new_id()
        self.jobs.send(work, self.around, name)
        return name

    def run(self, work: Work, name: str | None = None, behind: str = "") -> int:
        """Submit a job, or take the one of this name; follow it and return its exit code.

        A job that failed, or went with its cluster, is submitted again, `retries` times: what is finished stays. Not
        one with bad input, which would fail again, and not one that was stopped.
        """
        retries = self.retries
        name = name or self.submit(work)
        while True:
            try:
                with _says_how_to_go_on(name, behind):
                    job = self.jobs.follow(name)
            except JobGoneError as error:
                if not retries:
                    raise
                log.info("%s", error)
                started = True  # as far as anybody knows
            else:
                log.info("job %s %s", name, how_it_ended(job))
                code = exit_code(job)
                if not retries or job.status != "FAILED" or code == _BAD_INPUT:
                    return code
                started = was_started(job)
            retries -= 1
            log.info("again, %s", _how_often(retries))
            time.sleep(_RETRY_SECONDS)
            work = work.again() if started else work  # what was to be redone is there still
            name = self.submit(work, self.jobs.free_name(name))

    def run_chain(self, work: Work) -> int:
        """Each stage of a run as a job, submitted when the one before it has succeeded; return the first exit code that
        is not 0.

        A job that a killed chain has left running is followed, not submitted again.
        """
        stages, redone = _stages(work)
        left = self._left_running(work)
        if left is not None and redone and not self.force:
            raise UserError(
                f"{_in_use(work.folder, left)}; it is of an earlier command with these words, "
                "which go on with it without --fresh"
            )
        left = None if redone else left
        if left is not None:
            stages = _from(left.metadata[VERB_KEY], work)
        for number, stage in enumerate(stages, start=1):
            log.info("chain: %s, stage %d of %d", stage, number, len(stages))
            part = work.stage(stage, fresh=stage == redone)
            name = self.submit(part, self._name_of(part)) if left is None else left.submission_id
            left = None
            if code := self.run(part, name, _AFTER_A_CHAIN):
                return code
        return 0

    def _left_running(self, work: Work) -> Any | None:
        """The job of an earlier command with the same words, if it has not ended."""
        job = self.jobs.running_beside(work)
        if job is None or job.metadata[WORDS_KEY] != work.metadata[WORDS_KEY]:
            return None
        return job if job.metadata[VERB_KEY] in _all_stages(work) else None

    def _name_of(self, part: Work) -> str | None:
        """A chain that goes on finds the ids of its first try taken."""
        return self.jobs.free_name(f"{self.name}-{part.verb}") if self.name else None


def _how_often(more: int) -> str:
    if not more:
        return "for the last time"
    return f"and then {more} more time{'s' if more > 1 else ''} at most"


def _in_use(folder: str, job: Any) -> str:
    verb, name = job.metadata[VERB_KEY], job.submission_id
    return (
        f"{folder!r} is in use: job {name} ({verb}) is {job.status} there; "
        f"follow it (prm-ray logs {name} --follow), stop it (prm-ray stop {name}), or submit with --force"
    )


def _all_stages(work: Work) -> tuple[str, ...]:
    assert work.config is not None  # only an experiment has none, and it is no chain
    return work.config.stages()


def _stages(work: Work) -> tuple[tuple[str, ...], str | None]:
    """Stages of the chain that are not finished, as far as this machine sees the run's folder, and the one to redo.

    What it does not see its job skips by itself, some seconds later.
    """
    stages, config = _all_stages(work), work.config
    assert config is not None
    unfinished = tuple(stage for stage in stages if not StageFolder(config.run.dir, stage).is_done())
    if work.fresh is None:
        return unfinished, None
    first = stages[0] if work.fresh == "all" else work.fresh
    if first not in stages:
        raise UserError(f"--fresh {first}: this chain has the stages {', '.join(stages)}")
    place = stages.index(first)
    return tuple(stage for stage in stages if stage in unfinished or stages.index(stage) >= place), first


def _from(first: str, work: Work) -> tuple[str, ...]:
    """The stage at work, and all behind it: with --fresh it removes those, which may be finished at this moment."""
    return _all_stages(work)[_all_stages(work).index(first) :]


@contextmanager
def _says_how_to_go_on(name: str, behind: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        log.info("job %s goes on%s", name, behind)
        log.info("  follow it: prm-ray logs %s --follow", name)
        log.info("  stop it:   prm-ray stop %s", name)
        raise SystemExit(130) from None
