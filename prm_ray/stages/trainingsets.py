"""The responses that a run trains on, and those it holds out to measure while it trains."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.config import RunConfig
from prm_ray.dataselection import Selection
from prm_ray.errors import UserError
from prm_ray.outcomedata import Kind, OutcomeData, held_out_metrics
from prm_ray.outcomelosses import CrossEntropy
from prm_ray.stages.mappedrows import mapped_rows, rows_writer
from prm_ray.stages.trainingrows import read_training_rows, without_mismatched
from prm_ray.steplosses import training_loss
from prm_ray.tables import StageFolder
from prm_ray.trainer import Trainer
from prm_ray.trainingdata import share
from prm_ray.weights import collected, world

_KEPT = ("prompt_id", "prompt_tokens", "response_tokens", "ref_logprobs", "correct", "soft_label")
_MISMATCHED = ("mismatched_tokens", "mismatched_logprob", "mismatched_prompt_id")


def needs_step_labels(config: RunConfig) -> bool:
    return config.train.objective.startswith("step_") and config.train.step_labels != "outcome"


def training_columns(config: RunConfig) -> list[str]:
    """What the objective needs of a row."""
    objective = config.train.objective
    columns = [*_KEPT, *(_MISMATCHED if objective == "kto" else ())]
    columns += ["step_ends"] if objective.startswith("step_") else []
    return columns + (["step_labels"] if needs_step_labels(config) else [])


def training_stage(config: RunConfig) -> str:
    """The stage whose table is trained on."""
    return "step_label" if "step_label" in config.stages() else "reference"


def selected_responses(config: RunConfig) -> Selection:
    """The rows that are trained on or held out while training. Raises `UserError` if there are none."""
    selection = read_training_rows(config, training_columns(config), training_stage(config))
    if not needs_step_labels(config):
        return selection
    labelled = selection.table.filter(pc.is_valid(selection.table["step_labels"]))
    if not labelled.num_rows:
        raise UserError(f"none of {selection.table.num_rows} training responses has step labels; nothing to train on")
    without = selection.table.num_rows - labelled.num_rows
    left_out = selection.left_out | ({"no_step_labels": without} if without else {})
    return replace(selection, table=labelled, left_out=left_out)


@dataclass(frozen=True)
class StoredRows:
    """Files with the rows that are trained on and those held out. None of the workers selects anew."""

    trained: Path
    held_out: Path


def store_rows(table: pa.Table, config: RunConfig, folder: StageFolder) -> StoredRows:
    """Put the selected rows where this attempt's workers find them."""
    trained, held_out = (
        folder.write_draft(f".{name}.arrow", rows_writer(_part(table, config, held_out=name == "held-out")))
        for name in ("trained", "held-out")
    )
    return StoredRows(trained, held_out)


def training_data(config: RunConfig, rows: StoredRows) -> OutcomeData:
    section = config.train
    return OutcomeData(
        mapped_rows(rows.trained),
        training_loss(section, config.train_seed),
        kind=_kind(config),
        with_reference=section.with_reference,
        skip_uniform=section.skip_uniform_prompts,
        balance=section.balance_labels,
    )


def check_labels(data: OutcomeData, config: RunConfig) -> None:
    """Raises `UserError` if there is nothing to tell apart."""
    section = config.train
    if not data.labels:
        raise UserError(
            f"train.validation_fraction {section.validation_fraction} holds out every problem; nothing to train on"
        )
    if len(set(data.labels)) > 1 and not data.sizes:
        why = (
            "train.skip_uniform_prompts is set" if section.skip_uniform_prompts else f"objective {section.objective!r}"
        )
        raise UserError(
            f"no training problem has responses of both kinds, right and wrong, and {why}; sample more responses a "
            "problem (generate.num_samples, select.num_responses)"
        )
    if len(set(data.labels)) < 2:
        which = {1.0: "right", 0.0: "wrong"}.get(data.labels[0], f"right with the same chance, {data.labels[0]}")
        raise UserError(
            f"all {len(data.labels)} training responses are {which}; an outcome reward model needs both: "
            f"generate more, or change generate.temperature (now {config.generate.temperature}) or the problems"
        )
    if section.objective == "kto" and not data.num_mismatched_tokens():
        raise UserError(
            "train.objective 'kto' needs responses that reference scored behind another prompt, and there are none: it "
            f"takes those of the same part, so generate.problems_per_shard (now {config.generate.problems_per_shard}) "
            "must be above 1 (or a version made them that did not note whose they are: --fresh reference)"
        )


def held_out_responses(config: RunConfig) -> list[dict[str, Any]]:
    """Rows with prompt_id, prompt_tokens, response_tokens and correct of the problems that train holds out."""
    table = _part(selected_responses(config).table, config, held_out=True)
    rows = table.select(["prompt_id", "prompt_tokens", "response_tokens", "correct"]).to_pylist()
    return [row for row in rows if row["correct"] is not None]


def held_out_measure(config: RunConfig, rows: StoredRows) -> Callable[[Trainer], dict[str, Any]]:
    """Loss, accuracy and AUC of response rewards on the held-out share, whatever the objective.

    Every worker reads a part of it and has the figures of the whole: one alone would let the others wait, and after
    half an hour they take it for dead.
    """
    section = config.train
    beta = section.beta if section.reward == "log_ratio" else 1.0
    data = OutcomeData(
        mapped_rows(rows.held_out),
        CrossEntropy(beta),
        kind=_kind(config),
        with_reference=section.with_reference,
    )

    def measure(trainer: Trainer) -> dict[str, Any]:
        preview = partial(trainer.preview, token_budget=section.token_budget)
        mine = share(range(len(data.sizes)), *world())
        found = collected(data.rewards(mine, beta, preview))
        return held_out_metrics(sorted(found, key=itemgetter(0)))

    return measure


def _kind(config: RunConfig) -> Kind:
    return "log_ratio" if config.train.reward == "log_ratio" else "head"


def _part(table: pa.Table, config: RunConfig, held_out: bool) -> pa.Table:
    """The rows of the problems that are trained on, or of the seeded share held out to measure."""
    prompts = sorted(set(table["prompt_id"].to_pylist()))
    random.Random(f"{config.train_seed}-held-out").shuffle(prompts)
    num_held_out = round(config.train.validation_fraction * len(prompts))
    chosen = prompts[:num_held_out] if held_out else prompts[num_held_out:]
    part = table.filter(pc.is_in(table["prompt_id"], value_set=pa.array(chosen, pa.string())))
    return part if held_out else without_mismatched(part, prompts[:num_held_out])
