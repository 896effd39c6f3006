"""train: reference table -> checkpoint/, the reward model as a plain Hugging Face folder (or adapter) with `prm.json`.

In: reference/, or step_labels/ where the run has them (training rows without error whose outcome label is known, as far
as `[select]` keeps them). The reference's log-probs come from the table, so a step costs the policy alone; heads need
no reference.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.adapters import AdapterSettings, check_adapter
from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.metricslog import METRICS_FILE
from prm_ray.models import (
    base_model,
    count_parameters,
    load_model,
    load_tokenizer,
    read_prm_json,
    reference_model,
    resolve_model,
    write_prm_json,
)
from prm_ray.rewardmodels import load_with_value_head, reading_of
from prm_ray.runlog import log
from prm_ray.stages.fit import FitPlan, fit
from prm_ray.stages.lengths import COLUMNS as LENGTH_COLUMNS
from prm_ray.stages.lengths import length_figures
from prm_ray.stages.result import StageResult
from prm_ray.stages.trainingrows import check_mix, describe, read_test_rows, sentence
from prm_ray.stages.trainingsets import (
    check_labels,
    held_out_measure,
    selected_responses,
    store_rows,
    training_columns,
    training_data,
    training_stage,
)
from prm_ray.tables import StageFolder
from prm_ray.trainingdata import num_packed_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check(config: RunConfig) -> None:
    """Raises `UserError` for a start that is none, an adapter that the model cannot get, or a run in `select.mix` that
    cannot be mixed in, long before the responses are there."""
    base_model(config)
    _check_start(config)
    if config.train.reward == "label_token":
        reading_of("label_token", config.train.label_tokens, _tokenizer(config, resolve_model(config.model.name)))
    check_mix(config, training_columns(config), training_stage(config))
    if (adapter := _adapter(config)) is not None:  # a warm-up changes no layer's name
        check_adapter(resolve_model(config.model.name), adapter, config.model.trust_remote_code)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section, adapter = config.train, _adapter(config)
    policy, reference = _start(config), reference_model(config)
    selection = selected_responses(config)
    table, selected = selection.table, describe(config, selection)
    log.info("train: %s", sentence(selected))
    lengths = {"train": length_figures(table), "test": length_figures(read_test_rows(config, LENGTH_COLUMNS))}
    rows = store_rows(table, config, folder)
    data = training_data(config, rows)
    check_labels(data, config)
    make_data, make_held_out = partial(training_data, config, rows), partial(held_out_measure, config, rows)
    plan = FitPlan(
        *("train", folder, policy, config, section, config.train_seed),
        *(make_data, make_held_out, adapter),
        reading=reading_of(section.reward, section.label_tokens, _tokenizer(config, policy)),
        load=partial(load_with_value_head, seed=config.train_seed) if section.reward == "value_head" else load_model,
        head_lr=section.head_lr,
    )
    num_steps = len(plan.steps(data))
    fit(plan, num_steps)
    write_prm_json(folder.workspace, _facts(config, policy, reference), home=folder.path)
    num_responses, tokens = sum(data.sizes), data.num_response_tokens() * section.epochs
    last = (folder.shared_workspace / METRICS_FILE).read_text().splitlines()[-1]
    details = {
        "num_steps": num_steps,
        "num_parameters": count_parameters(policy, config.model.trust_remote_code),
        "trained_tokens": num_packed_tokens(data) * section.epochs,
        "forward_tokens": data.num_mismatched_tokens() * section.epochs if section.objective == "kto" else 0,
        "last": json.loads(last),
        "selection": selected,
        "response_tokens": lengths,
    }
    return StageResult(sum(selection.rows_in), num_responses, {}, tokens, details)


def _facts(config: RunConfig, policy: str, reference: str) -> dict[str, Any]:
    """What whoever loads the checkpoint has to know."""
    section = config.train
    facts: dict[str, Any] = {
        "reward": section.reward,
        "objective": section.objective,
        "beta": section.beta,
        "reference": reference,
        "with_reference": config.score.with_reference,
        "beta_schedule": config.score.beta_schedule,
        "trained_with_reference": section.with_reference,
        "step_rule": config.reference.step_rule,
        "aggregation": config.aggregation,
        "prompt": config.prompt.model_dump(mode="json", exclude={"chat_template"}),
    }
    if section.reward == "label_token":
        facts["label_tokens"] = section.label_tokens
    if section.lora_rank:
        facts["base"] = policy
    return facts


def _check_start(config: RunConfig) -> None:
    if config.train.start is None:
        return
    start, reward = resolve_model(config.train.start), config.train.reward
    is_ours = (Path(start) / "prm.json").is_file()
    if is_ours and (other := read_prm_json(start).get("reward", "log_ratio")) != reward:
        raise UserError(f"train.start {config.train.start!r} has the reward {other!r}; train.reward is {reward!r}")


def _start(config: RunConfig) -> str:
    return config.train.start or base_model(config)


def _tokenizer(config: RunConfig, model: str) -> PreTrainedTokenizerFast:
    """For the words of a head: the chat template is the run's own."""
    return load_tokenizer(model, trust_remote_code=config.model.trust_remote_code, needs_chat=False)


def _adapter(config: RunConfig) -> AdapterSettings | None:
    section = config.train
    if not section.lora_rank:
        return None
    alpha = section.lora_alpha or 2.0 * section.lora_rank
    return AdapterSettings(section.lora_rank, alpha, tuple(section.lora_targets))
