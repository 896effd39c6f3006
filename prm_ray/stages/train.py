"""train: reference table -> checkpoint/, the implicit PRM as a plain Hugging Face folder (or adapter) with `prm.json`.

In: reference/ (training rows without error whose outcome label is known, as far as `[select]` keeps them). The
reference's log-probs come from the table, so a step costs the policy alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.adapters import AdapterSettings, check_adapter
from prm_ray.config import RunConfig
from prm_ray.dataselection import Selection
from prm_ray.errors import UserError
from prm_ray.models import base_model_path, reference_model_path, resolve_model, write_prm_json
from prm_ray.outcomedata import OutcomeData, held_out_metrics
from prm_ray.outcomelosses import CrossEntropy, outcome_loss
from prm_ray.runlog import log
from prm_ray.stages.fit import FitPlan, fit
from prm_ray.stages.lengths import COLUMNS as LENGTH_COLUMNS
from prm_ray.stages.lengths import length_figures
from prm_ray.stages.result import StageResult
from prm_ray.stages.trainingrows import check_mix, describe, read_test_rows, read_training_rows
from prm_ray.tables import StageFolder
from prm_ray.trainer import Trainer

_KEPT = ["prompt_id", "prompt_tokens", "response_tokens", "ref_logprobs", "correct", "soft_label"]
_MISMATCHED = ["mismatched_tokens", "mismatched_logprob"]


def check(config: RunConfig) -> None:
    """Raises `UserError` for an adapter that the model cannot get, or a run in `select.mix` that cannot be mixed in,
    long before the responses are there."""
    base_model_path(config)
    check_mix(config, _columns(config))
    if (adapter := _adapter(config)) is not None:  # a warm-up changes no layer's name
        check_adapter(resolve_model(config.model.name), adapter, config.model.trust_remote_code)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section, adapter = config.train, _adapter(config)
    policy, reference = base_model_path(config), reference_model_path(config)
    selection = selected_rows(config)
    table, selected = selection.table, describe(config, selection)
    log.info("train: %s", selected)
    lengths = {"train": length_figures(table), "test": length_figures(read_test_rows(config, LENGTH_COLUMNS))}
    data = _training_data(config, table)
    _check_labels(data, config)
    make_data, make_held_out = partial(_training_data, config), partial(_held_out, config)
    plan = FitPlan("train", folder.path, policy, config, section, make_data, make_held_out, adapter)
    num_steps = len(plan.steps(data))
    fit(plan, num_steps)
    prompt = config.prompt.model_dump(mode="json", exclude={"chat_template"})
    write_prm_json(
        folder.path,
        {
            "objective": section.objective,
            "beta": section.beta,
            "reference": reference,
            "with_reference": config.score.with_reference,
            "step_rule": config.reference.step_rule,
            "aggregation": config.evaluate.aggregation,
            "prompt": prompt,
            **({} if adapter is None else {"base": policy}),
        },
    )
    num_responses = sum(data.sizes)
    tokens = pc.sum(pc.list_value_length(table["response_tokens"])).as_py() * section.epochs
    last = (folder.path / "metrics.jsonl").read_text().splitlines()[-1]
    details = {"num_steps": num_steps, "last": json.loads(last), "selection": selected, "response_tokens": lengths}
    return StageResult(sum(selection.rows_in), num_responses, {}, tokens, details)


def _adapter(config: RunConfig) -> AdapterSettings | None:
    section = config.train
    if not section.lora_rank:
        return None
    alpha = section.lora_alpha or 2.0 * section.lora_rank
    return AdapterSettings(section.lora_rank, alpha, tuple(section.lora_targets))


def selected_rows(config: RunConfig) -> Selection:
    """The rows that are trained on or held out while training. Raises `UserError` if there are none."""
    return read_training_rows(config, _columns(config))


def _columns(config: RunConfig) -> list[str]:
    return [*_KEPT, *(_MISMATCHED if config.train.objective == "kto" else ())]


def training_rows(config: RunConfig) -> pa.Table:
    return selected_rows(config).table


def _part(table: pa.Table, config: RunConfig, held_out: bool) -> pa.Table:
    """The rows of the problems that are trained on, or of the seeded share held out to measure."""
    prompts = sorted(set(table["prompt_id"].to_pylist()))
    random.Random(f"{config.run.seed}-held-out").shuffle(prompts)
    num_held_out = round(config.train.validation_fraction * len(prompts))
    chosen = prompts[:num_held_out] if held_out else prompts[num_held_out:]
    return table.filter(pc.is_in(table["prompt_id"], value_set=pa.array(chosen, pa.string())))


def _check_labels(data: OutcomeData, config: RunConfig) -> None:
    if not data.sizes or len(set(data.labels)) < 2:
        which = {1.0: "right", 0.0: "wrong"}.get(data.labels[0], f"right with the same chance, {data.labels[0]}")
        raise UserError(
            f"all {len(data.labels)} training responses are {which}; an outcome reward model needs both: "
            f"generate more, or change generate.temperature (now {config.generate.temperature}) or the problems"
        )


def _training_data(config: RunConfig, table: pa.Table | None = None) -> OutcomeData:
    return _outcomes(config, _part(training_rows(config) if table is None else table, config, held_out=False))


def _outcomes(config: RunConfig, rows: pa.Table) -> OutcomeData:
    section = config.train
    return OutcomeData(
        rows,
        outcome_loss(section, config.run.seed),
        with_reference=section.with_reference,
        skip_uniform=section.skip_uniform_prompts,
        balance=section.balance_labels,
    )


def _held_out(config: RunConfig) -> Callable[[Trainer], dict[str, Any]]:
    section = config.train
    data = OutcomeData(
        _part(training_rows(config), config, held_out=True),
        CrossEntropy(section.beta),
        with_reference=section.with_reference,
    )

    def measure(trainer: Trainer) -> dict[str, Any]:
        preview = partial(trainer.preview, token_budget=section.token_budget)
        return held_out_metrics(data.rewards(range(len(data.sizes)), section.beta, preview))

    return measure
