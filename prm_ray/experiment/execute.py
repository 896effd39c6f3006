"""Runs an experiment, run by run in one process with one Ray, what runs share once; then the comparison.

What is finished is skipped, so a killed experiment goes on with the same command. A run that fails is named with its
reason, and the others go on.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from pathlib import Path

from prm_ray.compare.compare import compare_runs
from prm_ray.compare.runs import ABOUT_FILE
from prm_ray.errors import NonFiniteLossError, StorageError, TakenOverError, UserError
from prm_ray.experiment.grid import Experiment, GridRun, is_done
from prm_ray.experiment.sharing import Sharing
from prm_ray.runlog import duration, log
from prm_ray.stages import pipeline
from prm_ray.stages.cluster import start_ray
from prm_ray.tables import StageFolder, write_json

CONFIG_FILE = "config.json"
"""In each run's folder: the whole config of that run, for every other verb of the command line."""
_FAILURE = "failure.txt"


def run_experiment(experiment: Experiment, only: Sequence[str] = (), fresh: str | None = None) -> list[str]:
    """Make all runs of the experiment, or those of the variants in `only` and what these need; then compare what is
    finished. `fresh` first removes the results of that stage and later ones of the variants asked for.

    Returns a line a run that failed. Raises `UserError` before any work for a mistake in the settings or inputs.
    """
    runs, sharing = experiment.chosen(only), Sharing(experiment.runs)
    for run in runs:
        _describe(experiment, run)
    if fresh:
        _clear(_redone(experiment, runs, only, fresh, sharing), fresh)
    for run in runs:
        sharing.link_finished(run)
        pipeline.check_settings(run.config)
    for run in runs:
        if not run.needs:  # what others make is not there yet; such a run is checked when its turn comes
            pipeline.check_inputs(run.config, [stage for stage in run.stages if sharing.maker(run, stage) is run])
    failures = _run_all(runs, sharing)
    _compare(experiment, failures)
    return [f"{name}: {reason}" for name, reason in failures.items()]


def _run_all(runs: list[GridRun], sharing: Sharing) -> dict[str, str]:
    """Run name -> why it failed."""
    failures: dict[str, str] = {}
    for run in runs:
        if is_done(run):
            continue
        start_ray(run.config)  # what ends here would end every run
        missing = _failed_before(run, sharing, failures)
        log.info("%s: %s", run.name, _standing(runs))
        reason = f"needs {missing[0]}, which failed" if missing else _attempt(run, sharing)
        if reason is not None:
            failures[run.name] = reason
            log.error("%s failed: %s", run.name, reason)
    return failures


def _failed_before(run: GridRun, sharing: Sharing, failures: dict[str, str]) -> list[str]:
    """Failed runs that this one builds on, or that should have made what it shares."""
    makers = {stage: sharing.maker(run, stage) for stage in run.stages}
    unmade = [maker.name for stage, maker in makers.items() if not StageFolder(maker.config.run.dir, stage).is_done()]
    return [name for name in (*run.needs, *unmade) if name in failures]


def _attempt(run: GridRun, sharing: Sharing) -> str | None:
    """Run what is missing of one run; return why it failed in one line."""
    failure = run.config.run.dir / _FAILURE
    failure.unlink(missing_ok=True)
    try:
        for stage in run.stages:
            _make(run, stage, sharing)
    except TakenOverError:  # by another start of this experiment: it does the other runs too
        raise
    except (UserError, NonFiniteLossError, StorageError) as error:
        return str(error)
    except Exception as error:  # a bug or a lost worker in one run must not end the hours of the others
        failure.write_text(traceback.format_exc(), encoding="utf-8")
        last = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {last[-1]} ({failure} has all of it)"
    return None


def _make(run: GridRun, stage: str, sharing: Sharing) -> None:
    """Run a stage, or have the run that makes it for all do so and link to it."""
    maker = sharing.maker(run, stage)
    if maker is run:
        pipeline.run_stage(run.config, stage)
    elif not StageFolder(run.config.run.dir, stage).is_done():
        for each in maker.stages[: maker.stages.index(stage) + 1]:
            _make(maker, each, sharing)
        sharing.link_finished(run)


def _standing(runs: list[GridRun]) -> str:
    """`7 of 40 runs done, about 1 h 12 min left`, from what the finished ones took."""
    done = [run for run in runs if is_done(run)]
    took = [_seconds(run) for run in done if not run.variant.data_only]
    left = f", about {duration(sum(took) / len(took) * (len(runs) - len(done)))} left" if took else ""
    return f"{len(done)} of {len(runs)} runs done{left}"


def _seconds(run: GridRun) -> float:
    """What the run's own stages took, without those it shares."""
    folders = [StageFolder(run.config.run.dir, stage) for stage in run.stages]
    return sum(folder.manifest()["seconds"] for folder in folders if not folder.path.is_symlink())


def _describe(experiment: Experiment, run: GridRun) -> None:
    """Leave in the run's folder what it is: its config for other verbs, and its place in the experiment."""
    folder = Path(run.config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    _write_if_new(folder / CONFIG_FILE, run.settings)
    variant = run.variant
    about = {"experiment": experiment.name, "name": variant.name, "label": variant.label or variant.name}
    about |= {"group": variant.group, "heading": experiment.groups.get(variant.group, variant.group)}
    _write_if_new(folder / ABOUT_FILE, about | {"seed": run.seed})


def _write_if_new(path: Path, value: object) -> None:
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != value:
        write_json(path, value)


def _redone(
    experiment: Experiment, runs: list[GridRun], only: Sequence[str], stage: str, sharing: Sharing
) -> list[GridRun]:
    """The runs that `--fresh STAGE` is about. Raises `UserError` if none has it, or others share it with them."""
    redone = [run for run in runs if stage in run.stages and (not only or run.variant.name in only)]
    if not redone:
        raise UserError(f"--fresh {stage}: no run that was asked for has this stage")
    makers = {sharing.maker(run, stage).name for run in redone}
    others = [run for run in experiment.runs if run not in redone and stage in run.stages]
    if shared := [run.name for run in others if sharing.maker(run, stage).name in makers]:
        raise UserError(
            f"--fresh {stage}: {redone[0].name} shares this stage with {', '.join(shared[:3])}"
            f"{' and others' if len(shared) > 3 else ''}; leave out --only to redo it for all, or name a later stage"
        )
    return redone


def _clear(runs: list[GridRun], stage: str) -> None:
    for run in runs:
        pipeline.check_before(run.config, stage)
    for run in runs:
        pipeline.clear_from(run.config, stage)


def _compare(experiment: Experiment, failures: dict[str, str]) -> None:
    """Compare all finished runs of the file, those that were not asked for now too."""
    runs = experiment.compared
    finished = [run.config.run.dir for run in runs if is_done(run)]
    if not finished:
        return
    notes = [f"{name} failed: {reason}" for name, reason in failures.items()]
    if waiting := [run.name for run in runs if not is_done(run) and run.name not in failures]:
        notes.append(f"Not run yet: {', '.join(waiting)}.")
    page = compare_runs(
        finished, experiment.folder / "comparison", title=experiment.title, groups=experiment.groups, notes=notes
    )
    log.info("comparison of %d runs in %s", len(finished), page)
