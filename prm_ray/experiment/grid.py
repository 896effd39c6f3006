"""An experiment file: one base config, and variants of it, each trained with several seeds.

Every (variant, seed) is an ordinary run. Nothing heavy is imported here: a mistake in the file is answered at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from prm_ray.config import RunConfig, parse_config, read_run_settings, read_settings, validation_message
from prm_ray.errors import UserError
from prm_ray.objectstore import is_remote
from prm_ray.overrides import apply_overrides
from prm_ray.settings import Section
from prm_ray.tables import StageFolder

BASE = "base"
"""The run that makes what the variants share: data alone, from the base config and the common settings."""
_GIVEN_BY_THE_EXPERIMENT = (("run", "dir"), ("train", "seed"))
_OTHER_RUN = re.compile(r"\{([^{}/]+)\}(?=/|$)")
"""`{name}` at the start of a value: the folder of that variant's run with the same seed, or of its data."""
_UNGROUPED = "variants"
_NOT_A_VARIANT = "problem"
"""`{problem}` is what prompt.template puts the problem in place of."""


class Variant(Section):
    """One way of doing it, that the experiment compares with others."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    label: str = ""
    """What people read; none = the name."""
    group: str = _UNGROUPED
    """Variants of a group stand together."""
    settings: dict[str, dict[str, Any]] = Field({}, alias="set")
    """section -> key -> value, over the base and the common ones."""
    unset: list[str] = Field([])
    """`section.key` of values from there that this variant goes without: those of another objective, say."""
    data_only: bool = False
    """Make its tables for others to use, once for all seeds; train nothing on them."""


class ExperimentFile(Section):
    base: str
    """The config that all runs begin with, seen from this file."""
    title: str = ""
    dir: str | None = None
    """Folder of all runs; none = runs/ and the file's name."""
    seeds: list[int] = Field([0], min_length=1)
    """Values of train.seed; the tables of the stages before are the same for all of them."""
    groups: dict[str, str] = Field({})
    """Group -> its heading."""
    common: dict[str, dict[str, Any]] = Field({})
    """section -> key -> value, over the base, for every run."""
    variant: list[Variant] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, value: list[int]) -> list[int]:
        if min(value) < 0 or len(set(value)) < len(value):
            raise ValueError("must be different numbers of at least 0")
        return value


@dataclass(frozen=True)
class GridRun:
    """One run of the experiment: a variant with a seed, or data alone, which has none."""

    name: str
    variant: Variant
    config: RunConfig
    settings: dict[str, Any]
    """What `config` was made of, as a file of its own would have it."""
    seed: int | None = None
    needs: tuple[str, ...] = ()
    """Runs whose results its settings name."""

    @property
    def stages(self) -> tuple[str, ...]:
        return upstream(self.config) if self.variant.data_only else self.config.stages()


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    folder: Path
    groups: dict[str, str]
    runs: list[GridRun]
    """The base and other data first, then all variants seed by seed, each behind those it needs."""

    @property
    def compared(self) -> list[GridRun]:
        return [run for run in self.runs if not run.variant.data_only]

    def chosen(self, names: Iterable[str] = ()) -> list[GridRun]:
        """The runs of these variants and all that they need; no names = all of them.

        Raises `UserError` for a name that no variant has.
        """
        wanted = list(names)
        known = dict.fromkeys(run.variant.name for run in self.runs)
        for name in wanted:
            if name not in known:
                raise UserError(f"{self.name} has no variant {name!r}; it has {', '.join(known)}")
        kept: set[str] = set()
        for run in reversed(self.runs):
            if not wanted or run.name in kept or run.variant.name in wanted:
                kept |= {run.name, *run.needs}
        return [run for run in self.runs if run.name in kept or run.name == BASE]


def upstream(config: RunConfig) -> tuple[str, ...]:
    """The stages before `train`. From there on every run works for itself: `score` writes into the checkpoint too.

    Before `score` where a published model scores and nothing is trained.
    """
    stages = config.stages()
    return stages[: stages.index("train" if "train" in stages else "score")]


def is_done(run: GridRun) -> bool:
    return all(StageFolder(run.config.run.dir, stage).is_done() for stage in run.stages)


def load_experiment(path: str | Path, overrides: list[str] | None = None, folder: str | None = None) -> Experiment:
    """Read the file; `overrides` (`section.key=value`) go over its common settings, `folder` over its own.

    Raises `UserError` naming the variant and the key that is wrong.
    """
    path = Path(path)
    data = read_settings(path, "experiment file")
    if not data.keys() & {"base", "variant"}:
        raise UserError(
            f"{str(path)!r} is no experiment file: it has neither a base nor variants; prm-ray run takes it"
        )
    try:
        file = ExperimentFile.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{str(path)!r}: {validation_message(error)}") from None
    common = copy.deepcopy(file.common)
    apply_overrides(common, overrides or [])
    settings = _over(read_run_settings(path.parent / file.base, "base config"), _allowed("common", common))
    where = _folder(next((given for given in (folder, file.dir) if given is not None), f"runs/{path.stem}"))
    headings = _headings(file)
    variants = [Variant(name=BASE, label="what all share", data_only=True), *file.variant]
    ordered = _in_order(variants)
    data_only = {variant.name for variant in variants if variant.data_only}
    runs = []
    for seed in (None, *file.seeds):
        for variant, needs in ordered:
            if variant.data_only == (seed is None):
                named = {need: need if need in data_only else f"{need}-{seed}" for need in needs}
                runs.append(_grid_run(variant, named, seed, settings, where))
    return Experiment(path.stem, file.title or path.stem, where, headings, runs)


def _folder(place: str) -> Path:
    if not place.strip():
        raise UserError(f"the experiment's folder (--dir, or dir in its file) must not be empty (got {place!r})")
    if is_remote(place):
        raise UserError(f"the experiment's folder {place!r} must be on storage that has symbolic links, not an address")
    return Path(place).expanduser().absolute()


def _headings(file: ExperimentFile) -> dict[str, str]:
    """Group -> heading. Raises `UserError` for a variant of a group that the file has no heading for, if it has any."""
    for variant in file.variant:
        if "group" in variant.model_fields_set and file.groups and variant.group not in file.groups:
            known = ", ".join(file.groups)
            raise UserError(f"variant {variant.name!r}: group {variant.group!r} must be one of [groups]: {known}")
    is_used = any(variant.group == _UNGROUPED and not variant.data_only for variant in file.variant)
    return ({_UNGROUPED: "Variants"} if is_used else {}) | file.groups


def _grid_run(
    variant: Variant, needs: dict[str, str], seed: int | None, settings: dict[str, Any], where: Path
) -> GridRun:
    """`needs`: variant -> run."""
    what, name = f"variant {variant.name!r}", variant.name if seed is None else f"{variant.name}-{seed}"
    own = _with_folders(_allowed(what, variant.settings), {need: str(where / run) for need, run in needs.items()})
    whole = _over(_over(_without(what, settings, variant.unset), own), {"run": {"dir": str(where / name)}})
    if seed is not None:
        whole = _over(whole, {"train": {"seed": seed}})
    return GridRun(name, variant, _parsed(what, whole), whole, seed, tuple(needs.values()))


def _parsed(what: str, settings: dict[str, Any]) -> RunConfig:
    try:
        return parse_config(settings)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def _allowed(what: str, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for section, key in _GIVEN_BY_THE_EXPERIMENT:
        if key in settings.get(section, {}):
            raise UserError(f"{what}: {section}.{key} is given by the experiment (dir, seeds); leave it out")
    return settings


def _over(below: dict[str, Any], above: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`below` with the values of `above`, key by key in each section."""
    result = copy.deepcopy(below)
    for section, values in above.items():
        table = result.setdefault(section, {})
        if not isinstance(table, dict):
            raise UserError(f"config key {section!r} must be a section")
        table.update(copy.deepcopy(values))
    return result


def _without(what: str, settings: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    result = copy.deepcopy(settings)
    for name in keys:
        section, _, key = name.partition(".")
        if key not in result.get(section, {}):
            raise UserError(f"{what}: unset {name!r} must be a section.key that the base or the common settings have")
        del result[section][key]
    return result


def _in_order(variants: list[Variant]) -> list[tuple[Variant, list[str]]]:
    """Each variant with those it needs, which stand before it; else the order of the file.

    Raises `UserError` if two have one name, one needs what is not there or (data alone) is trained, or some need each
    other.
    """
    by_name = {variant.name: variant for variant in variants}
    if _NOT_A_VARIANT in by_name:
        raise UserError(f"variant {_NOT_A_VARIANT!r}: {{{_NOT_A_VARIANT}}} stands for a problem in prompt.template")
    for variant in variants:
        if misplaced := next((name for name in by_name if _is_misplaced(variant.settings, name)), None):
            raise UserError(
                f"variant {variant.name!r}: {{{misplaced}}} must stand at the start of a value, alone or before a /"
            )
    if len(by_name) < len(variants):
        names = [variant.name for variant in variants]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"variant {twice!r}: the name is taken")
    needs = {variant.name: _named(variant.settings) for variant in variants}
    for name, needed in needs.items():
        if unknown := [each for each in needed if each not in by_name]:
            raise UserError(f"variant {name!r}: {{{unknown[0]}}} must name a variant: {', '.join(by_name)}")
        if by_name[name].data_only and (trained := [each for each in needed if not by_name[each].data_only]):
            raise UserError(f"variant {name!r} is data_only, so {{{trained[0]}}} must be too: it has no seed")
    placed: dict[str, None] = {}
    while len(placed) < len(variants):
        ready = [name for name in by_name if name not in placed and all(each in placed for each in needs[name])]
        if not ready:
            waiting = [name for name in by_name if name not in placed]
            raise UserError(f"variants {', '.join(waiting)} need each other, or themselves: none can be the first")
        placed[ready[0]] = None
    return [(by_name[name], needs[name]) for name in placed]


def _is_misplaced(value: Any, name: str) -> bool:
    """Is `{name}` anywhere in the values but where it stands for the folder of a run?"""
    if isinstance(value, dict | list):
        return any(_is_misplaced(part, name) for part in (value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str):
        return False
    match = _OTHER_RUN.match(value)
    return f"{{{name}}}" in (value[match.end() :] if match else value)


def _named(value: Any) -> list[str]:
    """Variants that values name, each once."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return list(dict.fromkeys(name for part in parts for name in _named(part)))
    match = _OTHER_RUN.match(value) if isinstance(value, str) else None
    return [match[1]] if match and match[1] != _NOT_A_VARIANT else []


def _with_folders(value: Any, folders: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_folders(part, folders) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_folders(part, folders) for part in value]
    match = _OTHER_RUN.match(value) if isinstance(value, str) else None
    return folders[match[1]] + value[match.end() :] if match and match[1] in folders else value
