"""What runs of an experiment have in common is made once: which run makes a stage, and links to it in the others.

Two runs share a stage before `train` if they have the same settings for it and for every stage before it. One of them
makes it (the base if it is among them); the others have a link to its finished folder in the place of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.experiment.grid import GridRun, upstream
from prm_ray.tables import StageFolder


class Sharing:
    """Which run makes which stage for which others. Known from all runs of the file, also those not asked for now."""

    def __init__(self, runs: Iterable[GridRun]):
        self._makers: dict[str, GridRun] = {}
        for run in runs:
            for stage in upstream(run.config):
                known = self._makers.setdefault(_key(run.config, stage), run)
                if not _has_own(known, stage) and _has_own(run, stage):
                    self._makers[_key(run.config, stage)] = run  # the file was put in another order since

    def maker(self, run: GridRun, stage: str) -> GridRun:
        """The run whose own folder of the stage this one reads; that may be itself."""
        if stage not in upstream(run.config) or _has_own(run, stage):
            return run
        return self._makers[_key(run.config, stage)]

    def link_finished(self, run: GridRun) -> None:
        """Put a link for each shared stage that is finished, and take away links that lead elsewhere or nowhere."""
        for stage in upstream(run.config):
            target = StageFolder(run.config.run.dir, stage).path
            maker = self.maker(run, stage)
            source = StageFolder(maker.config.run.dir, stage)
            if target.is_symlink() and (
                maker is run or not source.is_done() or target.resolve() != source.path.resolve()
            ):
                target.unlink()
            if maker is not run and source.is_done() and not target.is_symlink():
                _link(target, source)


def _link(target: os.PathLike[str], source: StageFolder) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.symlink(os.path.relpath(source.path, os.path.dirname(target)), target, target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"{str(target)!r} cannot be a link to {str(source.path)!r} ({error.strerror}): "
            "an experiment's folder must be on storage that has symbolic links"
        ) from None


def _has_own(run: GridRun, stage: str) -> bool:
    path = StageFolder(run.config.run.dir, stage).path
    return path.is_dir() and not path.is_symlink()


def _key(config: RunConfig, stage: str) -> str:
    return json.dumps(list(_identities(config, stage)), sort_keys=True, default=str)


def _identities(config: RunConfig, last: str) -> Iterator[tuple[str, dict[str, object]]]:
    for stage in config.stages():
        yield stage, config.identity(stage)
        if stage == last:
            return
