"""Runs stages: checks what they build on, starts Ray where it is needed, records what came out.

A stage is a module with `run(config, folder) -> StageResult`. All about order, staleness and manifests is here.
"""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from prm_ray.attempts import Attempt
from prm_ray.config import RunConfig
from prm_ray.errors import EngineError, NonFiniteLossError, StorageError, TakenOverError, UserError
from prm_ray.objectstore import check_answers, check_reachable, is_remote, location, refusal_is_bad_input
from prm_ray.runlog import log
from prm_ray.stages.provenance import code_revision, versions
from prm_ray.stages.result import StageResult
from prm_ray.storage import storage_failure
from prm_ray.tables import FOLDERS, StageFolder, in_words

_RUNS = ("select.mix", "train.start", "step_label.verifier")
"""Settings that name runs, or folders in runs."""
_WITHOUT_RAY = ("rerank", "evaluate")
Known = UserError | NonFiniteLossError | EngineError | StorageError | TakenOverError
_KNOWN: dict[str, type[Known]] = {
    kind.__name__: kind for kind in (UserError, NonFiniteLossError, EngineError, StorageError, TakenOverError)
}
_OURS_IN_TRACEBACK = re.compile(rf"^\s*prm_ray\.errors\.({'|'.join(_KNOWN)}): (.+)$", re.MULTILINE)
_attempts: dict[Path, Attempt] = {}
"""Run folder -> this process' attempt at the run: one for all stages, so that a process that was replaced stays the
older one, whichever stage it gets to."""


def run_all(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Run every stage of the config that is not finished; return stage -> manifest.

    Raises `UserError` before any work if a folder was made with other settings.
    """
    check_storage(config)
    check_settings(config)
    check_inputs(config, config.stages())
    return {stage: run_stage(config, stage) for stage in config.stages()}


def check_storage(config: RunConfig) -> None:
    """Raises `UserError` if the run's folder is an address that cannot be reached at the start, or lies in a file."""
    if is_remote(config.run.dir):
        with _reaching(config):
            check_reachable(config.run.dir)
    elif files := [place for place in (config.run.dir, *config.run.dir.parents) if place.is_file()]:
        raise UserError(f"run.dir must be a folder, and {str(files[0])!r} is a file")


@contextmanager
def _reaching(config: RunConfig) -> Iterator[None]:
    """At the start an address that cannot be reached is bad input: its name, the credentials, the endpoint. Once this
    process has begun a stage they were good, so it is a `StorageError`, and the next try may do."""
    try:
        yield
    except UserError as error:
        if config.run.dir not in _attempts:
            raise
        raise StorageError(str(error)) from None


def check_settings(config: RunConfig, stages: Iterable[str] | None = None) -> None:
    """Raises `UserError` if the folder of one of these stages (none = all of the run) was made with other settings."""
    for stage in config.stages() if stages is None else stages:
        _check_identity(config, stage)


def check_inputs(config: RunConfig, stages: Iterable[str]) -> None:
    """Raises `UserError` if an unfinished one of these stages cannot have what it takes from outside the run."""
    for stage in stages:
        if not StageFolder(config.run.dir, stage).is_done():
            _check_inputs(config, stage)


def run_stage(config: RunConfig, stage: str) -> dict[str, Any]:
    """Run one stage, or nothing if it is finished; return its manifest.

    Raises `UserError` if the run has no such stage, an earlier one is not finished, or a folder was made with other
    settings: all before Ray starts. Failures inside Ray come out as the `UserError` or `NonFiniteLossError` they were.
    """
    _check_belongs(config, stage)
    check_storage(config)
    _check_upstream(config, stage)
    folder, identity = StageFolder(config.run.dir, stage), _identity(config, stage)
    _check_identity(config, stage)
    if folder.complete():
        log.info("%-9s already done in %s", stage, folder.path)
        return folder.manifest()
    module = _module(stage)
    _check_inputs(config, stage)
    if stage not in _WITHOUT_RAY:
        from prm_ray.stages.cluster import start_ray
        from prm_ray.stages.gpus import say_unused_gpus

        start_ray(config)
        say_unused_gpus(config, stage)
    resumed = folder.path.is_dir()
    folder.begin(identity, _defaults(config, stage), _attempts.get(config.run.dir))
    assert folder.attempt is not None
    _attempts[config.run.dir] = folder.attempt
    log.info("%-9s %s in %s", stage, "goes on" if resumed else "starts", folder.path)
    start = time.monotonic()
    try:
        result = module.run(config, folder)
        how = {"resumed": resumed, "resources": config.resources(stage)}
        folder.finish(_manifest(stage, identity, result, time.monotonic() - start) | how)
    except Exception as error:  # Ray wraps a worker's exception in many types; the known cause in it is what helps
        if folder.was_finished_by_another():
            log.info("%-9s was finished by another attempt", stage)
            return folder.manifest()
        cause = known_cause(error, folder.path)
        if isinstance(cause, UserError) and not resumed:
            folder.clear_if_empty()
        if cause is None or cause is error:
            raise
        raise cause from error
    manifest = folder.manifest()
    _log_result(stage, result, manifest["seconds"])
    return manifest


def clear_from(config: RunConfig, stage: str) -> None:
    """Remove the folders of this stage and all later ones, last first: a kill half-way leaves a shorter, sound run.

    Raises `UserError`, and removes nothing, if an earlier stage was made with other settings than the config's.
    """
    check_storage(config)
    check_before(config, stage)
    for later in reversed(config.onwards(stage)):
        folder = StageFolder(config.run.dir, later)
        if folder.path.exists() or folder.path.is_symlink():  # also a link whose other end is gone
            log.info("%-9s removing %s", later, folder.path)
            folder.clear()


def check_before(config: RunConfig, stage: str) -> None:
    """Raises `UserError` if the run has no such stage, or an earlier one was made with other settings."""
    _check_belongs(config, stage)
    for earlier in config.before(stage):
        _check_identity(config, earlier)


def known_cause(error: BaseException, folder: Path | None = None) -> Known | None:
    """The plain failure of ours inside what Ray made of it, or None; `folder` is what was written in."""
    if isinstance(error, OSError) and (failure := storage_failure(Path(error.filename or folder or "a file"), error)):
        return failure
    if type(error) in _KNOWN.values():
        assert isinstance(error, Known)
        return error
    return cause_in_traceback(str(error))


def cause_in_traceback(text: str) -> Known | None:
    """The last failure of ours that a traceback shows.

    Of an exception in a Ray Data function, an actor's constructor or a Serve replica Ray keeps only the text; in the
    other cases (tasks, Ray Train) the text shows it too.
    """
    found = _OURS_IN_TRACEBACK.findall(text)
    if not found:
        return None
    name, message = found[-1]
    return _KNOWN[name](message)


def _module(stage: str) -> ModuleType:
    return importlib.import_module(f"prm_ray.stages.{'import_' if stage == 'import' else stage}")


def _check_inputs(config: RunConfig, stage: str) -> None:
    """What a stage takes from outside the run (files, models, judges), before Ray starts or an earlier stage works."""
    check = getattr(_module(stage), "check", None)
    if check is not None:
        models = (config.model.name, config.reference.model, config.train.start, config.score.model)
        for name in filter(is_remote, (*models, config.step_label.verifier)):
            with _reaching(config):
                check_answers(location(str(name)))
        with nullcontext() if config.run.dir in _attempts else refusal_is_bad_input():  # of models named by others
            check(config)


def _check_belongs(config: RunConfig, stage: str) -> None:
    if stage not in (*config.stages(), *config.measurements()):
        reasons = {
            "import": "import.source is not set",
            "warmup": "warmup.enabled is false",
            "step_label": "step_label.method is none",
            "policy": f"train.reward {config.train.reward!r} makes no model that answers",
        }
        if config.score.model is not None:
            because = f"it scores with score.model {config.score.model!r}"
            reasons |= dict.fromkeys(("step_label", "train", "policy"), because)
        reason = reasons.get(stage, "import.source is set, so responses and labels come from there")
        raise UserError(f"this run has no {stage} stage: {reason}")


def _check_upstream(config: RunConfig, stage: str) -> None:
    for earlier in config.before(stage):
        StageFolder(config.run.dir, earlier).manifest()
        _check_identity(config, earlier)


def _check_identity(config: RunConfig, stage: str) -> None:
    StageFolder(config.run.dir, stage).check_identity(_identity(config, stage), _defaults(config, stage))


def _identity(config: RunConfig, stage: str) -> dict[str, Any]:
    """The settings behind a stage, and when what it builds on finished: what was redone upstream is noticed too."""
    identity = config.identity(stage)
    if earlier := config.before(stage):
        before = StageFolder(config.run.dir, earlier[-1])
        identity[f"{before.stage}.finished_at"] = before.manifest()["finished_at"] if before.is_done() else None
    return identity | _other_runs(config, stage)


def _defaults(config: RunConfig, stage: str) -> dict[str, Any]:
    """What a folder of an older version, which did not know a setting, counts as begun with."""
    return RunConfig().identity(stage) | _other_runs(config, stage)


def _other_runs(config: RunConfig, stage: str) -> dict[str, list[str]]:
    """When what settings name of other runs was finished: a checkpoint to start from, runs whose data are mixed in."""
    found = {}
    for key, value in config.identity(stage).items():
        if key not in _RUNS and is_remote(value):
            continue  # no run folder: nothing to ask the store for
        folders = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
        if finished := [at for folder in folders if (at := _finished_at(folder))]:
            found[f"{key}.finished_at"] = finished
    return found


def _finished_at(folder: str) -> str | None:
    """Of a folder of a stage, or of the last table that a run has to train on; None if it is neither."""
    where = location(folder) if is_remote(folder) else Path(folder)
    for inside in ("", FOLDERS["step_label"], FOLDERS["reference"]):
        if (manifest := where / inside / "manifest.json").is_file():
            return json.loads(manifest.read_text(encoding="utf-8"))["finished_at"]
    return None


def _manifest(stage: str, identity: dict[str, Any], result: StageResult, seconds: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "identity": identity,
        "code_revision": code_revision(),
        "versions": versions(),
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "failed": result.failed,
        "seconds": round(seconds, 2),
        "tokens": result.tokens,
        "details": result.details,
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _log_result(stage: str, result: StageResult, seconds: float) -> None:
    failed = in_words(dict(sorted(result.failed.items())))
    rows = f"{result.rows_in} rows in, {result.rows_out} rows out"
    log.info("%-9s done in %.1f s: %s, failed: %s", stage, seconds, rows, failed)
