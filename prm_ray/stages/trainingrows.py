"""Reads the rows that `[select]` chooses from, of the run and of those it mixes in, and hands back what it chose.

The reference's log-probs of all rows must come from one model: a row's fingerprint says from which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.config import RunConfig
from prm_ray.dataselection import NEEDED, Selection, select
from prm_ray.errors import UserError
from prm_ray.fingerprints import model_fingerprint, row_fingerprint
from prm_ray.models import reference_model
from prm_ray.parquetfiles import column_names, read_parquet
from prm_ray.schemas import SCHEMAS
from prm_ray.settings import TAKES_SOFT_LABELS
from prm_ray.tables import StageFolder, in_words

_OF_STEPS = {"step_ends", "step_labels"}


def check_mix(config: RunConfig, columns: Sequence[str] = (), stage: str = "reference") -> None:
    """Raises `UserError` for a run in `select.mix` whose rows cannot be trained on beside this run's.

    It has to be finished up to `stage`, have log-probs of this run's reference model, and, if its steps are asked for,
    have cut them by the same rule. A reference that the run's own warm-up has yet to make is not compared.
    """
    for run in config.select.mix:
        other = StageFolder(run, stage)
        other.manifest()
        if other.path.resolve() == StageFolder(config.run.dir, stage).path.resolve():
            raise UserError(f"select.mix: {str(run)!r} has this run's own responses; it must have others")
        rule = StageFolder(run, "reference").manifest()["identity"]["reference.step_rule"]
        if _OF_STEPS & {*columns} and rule != config.reference.step_rule:
            raise UserError(
                f"select.mix: {str(run)!r} has steps by reference.step_rule {rule!r}, this run by "
                f"{config.reference.step_rule!r}; they must be the same"
            )
        if not config.warmup.enabled or config.reference.model or StageFolder(config.run.dir, "warmup").is_done():
            _check_reference(config, other)


def read_training_rows(config: RunConfig, columns: Sequence[str], stage: str = "reference") -> Selection:
    """The selected rows with `columns`, from the tables of `stage`: `reference`, or a later one that adds to it.

    Raises `UserError` if there are none, or they have labels that `train.objective` does not take.
    """
    check_mix(config, columns, stage)
    own, *mixed = (StageFolder(run, stage) for run in (config.run.dir, *config.select.mix))
    tables = [_split(folder, "train", [*columns, *NEEDED]) for folder in (own, *mixed)]
    if not tables[0].num_rows:
        raise UserError(f"{str(own.path)!r} has no training response; nothing to train on")
    tested = _split(own, "test", ["prompt_id", "problem"])
    held_out = dict(zip(tested["prompt_id"].to_pylist(), tested["problem"].to_pylist(), strict=True))
    selection = select(tables, held_out, config.select, config.run.seed)
    check_soft_labels(config.train.objective, pc.drop_null(selection.table["soft_label"]).to_pylist())
    return replace(selection, table=without_mismatched(selection.table, held_out))


def without_mismatched(table: pa.Table, held_out: Iterable[str]) -> pa.Table:
    """No row with a response of these problems behind its prompt, nor with one that nobody knows the problem of.

    Such rows stay, and are trained on without it: the KL is estimated from those of the others.
    """
    if "mismatched_prompt_id" not in table.column_names:
        return table
    owner = table["mismatched_prompt_id"]
    is_free = pc.and_(pc.is_valid(owner), pc.invert(pc.is_in(owner, value_set=pa.array(held_out, pa.string()))))
    for name in ("mismatched_tokens", "mismatched_logprob"):
        kept = pc.if_else(is_free, table[name], pa.scalar(None, table.schema.field(name).type))
        table = table.set_column(table.schema.get_field_index(name), name, kept)
    return table


def read_test_rows(config: RunConfig, columns: list[str], stage: str = "reference") -> pa.Table:
    """The held-out rows that are no error and have a known label, with `columns`."""
    names = list(dict.fromkeys([*columns, "error", "correct"]))
    rows = _split(StageFolder(config.run.dir, stage), "test", names)
    return rows.filter(pc.and_(pc.is_null(rows["error"]), pc.is_valid(rows["correct"]))).select(columns)


def check_soft_labels(objective: str, labels: Sequence[float]) -> None:
    """Raises `UserError` if there are soft labels to train on and the objective does not take them."""
    if labels and objective not in TAKES_SOFT_LABELS:
        raise UserError(
            f"train.objective {objective!r} needs labels that are right or wrong, but {len(labels)} training responses "
            f"have a chance of being right, the first {labels[0]}: it must be {' or '.join(TAKES_SOFT_LABELS)}"
        )


def describe(config: RunConfig, selection: Selection) -> dict[str, Any]:
    """The figures of a selection for a manifest: rows in = rows out + rows left out, over all runs."""
    runs = ["own", *map(str, config.select.mix)]
    return {
        "rows_in": dict(zip(runs, selection.rows_in, strict=True)),
        "left_out": selection.left_out,
        "rows_out": dict(zip(runs, selection.rows_out, strict=True)),
        "problems_out": selection.num_problems,
    }


def sentence(described: dict[str, Any]) -> str:
    """The same for a log line."""
    chosen = {run: f"{rows:,} of {described['rows_in'][run]:,}" for run, rows in described["rows_out"].items()}
    mixed = "".join(f", {rows} of {run}" for run, rows in chosen.items() if run != "own")
    left_out = f"; left out: {in_words(described['left_out'])}" if described["left_out"] else ""
    return f"{chosen['own']} responses{mixed}, to {described['problems_out']:,} problems{left_out}"


def _split(folder: StageFolder, split: str, columns: Sequence[str]) -> pa.Table:
    """Rows of a split; a column that a part of an earlier version lacks is null there."""
    columns = list(dict.fromkeys(columns))
    schema = pa.schema([SCHEMAS[folder.stage].field(name) for name in columns])
    parts = [schema.empty_table()]
    for index in folder.finished_parts():
        path = folder.part_path(index)
        there = set(column_names(path))
        part = read_parquet(path, [*(name for name in columns if name in there), "split"])
        parts.append(part.filter(pc.equal(part["split"], split)).drop_columns("split"))
    return pa.concat_tables(parts, promote_options="default")


def _check_reference(config: RunConfig, other: StageFolder) -> None:
    """One row of each part: a part is made by one worker with one model."""
    name = reference_model(config)
    fingerprint = model_fingerprint(name)
    for index in other.finished_parts():
        rows = read_parquet(other.part_path(index), ["fingerprint", "prompt_tokens", "response_tokens"])
        (row,) = rows.filter(pc.is_valid(rows["fingerprint"])).slice(0, 1).to_pylist() or [None]
        if row and row["fingerprint"] != row_fingerprint(fingerprint, row["prompt_tokens"], row["response_tokens"]):
            raise UserError(
                f"select.mix: {str(other.path.parent)!r} has log-probs of another reference model than this "
                f"run's, {name!r}; make them again there with reference.model set to it and --fresh reference"
            )
