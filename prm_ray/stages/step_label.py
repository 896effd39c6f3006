"""step_label (optional): reference table -> the same training rows with a label for every step.

In: reference/ (training rows). Out: step_labels/ adds step_labels and step_label_error; `train` then reads it in place
of reference/. The method is Math-Shepherd's completions, AutoPSV's confidence, or for arithmetic the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from prm_ray.answers import Judge
from prm_ray.config import RunConfig
from prm_ray.core.steplabels import labels_before
from prm_ray.errors import UserError
from prm_ray.models import base_model, load_tokenizer, resolve_model
from prm_ray.stages.completions import SHARDS_AT_ONCE, CompletionWorker, check_gold_answers, completion_options
from prm_ray.stages.confidence import ConfidenceLabeller, check_verifier
from prm_ray.stages.labelshards import LabelShard, asked_rows, plan_shards, read_shard
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.stages.stepcheck import first_wrong_step, steps_of
from prm_ray.tables import StageFolder, count_failures


def check(config: RunConfig) -> None:
    """Raises `UserError` for a generator, judge or verifier that cannot be used."""
    if config.step_label.method == "monte_carlo":
        model = resolve_model(config.model.name)
        load_tokenizer(model, config.prompt.chat_template, config.model.trust_remote_code)
        completion_options(config, model)
        Judge(config.label).close()
    elif config.step_label.method == "confidence":
        check_verifier(config)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section, shards = config.step_label, plan_shards(config)
    if not shards:
        source = StageFolder(config.run.dir, "reference").path
        raise UserError(f"{str(source)!r} has no training response; nothing to label")
    worker_kwargs: dict[str, Any] = {"config": config, "folder": folder, "shards": shards}
    if section.method == "monte_carlo":
        check_gold_answers(config)
        options = completion_options(config, base_model(config))
        map_shards(
            folder,
            len(shards),
            CompletionWorker,
            worker_kwargs | {"options": options},
            name="step_label",
            num_workers=config.generate.num_engines,
            num_gpus=config.generate.gpus_per_engine,
            concurrency=SHARDS_AT_ONCE,
        )
    else:
        map_shards(
            folder,
            len(shards),
            StepLabelWorker,
            worker_kwargs,
            name="step_label",
            num_workers=section.num_workers,
            num_gpus=section.gpus_per_worker,
        )
    return _result(config, folder)


class StepLabelWorker:
    """Labels one shard after the other with what needs no sampling."""

    def __init__(self, config: RunConfig, folder: StageFolder, shards: list[LabelShard]):
        self._config, self._folder, self._shards = config, folder, shards
        self._labeller = _LABELLERS[config.step_label.method](config)

    def __call__(self, shard: int) -> ShardStats:
        rows = read_shard(self._config, self._shards[shard])
        asked = asked_rows(rows, self._config.step_label.num_responses)
        counts = self._labeller(asked)
        rows = self._folder.write_part(shard, rows, {"work": counts})
        tokens = sum(len(row["response_tokens"]) for row in asked)
        return ShardStats(len(rows), count_failures(rows, "step_label_error"), tokens)


class TruthLabeller:
    """1 for each line before the first whose value is not the problem's, 0 from there on."""

    def __init__(self, config: RunConfig):
        self._rule = config.reference.step_rule

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, int]:
        for row in rows:
            num_steps = len(row["step_ends"])
            steps = steps_of(row["text"], self._rule, num_steps)
            if steps is None:
                row["step_label_error"] = f"shared_token: two lines end in one token, so there are {num_steps} steps"
            else:
                row["step_labels"] = labels_before(first_wrong_step(steps, row["problem"]), num_steps)
        return {}


_LABELLERS: dict[str, Callable[[RunConfig], Callable[[list[dict[str, Any]]], dict[str, int]]]] = {
    "confidence": ConfidenceLabeller,
    "truth": TruthLabeller,
}


def _result(config: RunConfig, folder: StageFolder) -> StageResult:
    """Counts of all parts, those of an earlier, killed start included."""
    counted = count_parts(folder, ("error", "label_error", "step_label_error"))
    work: dict[str, Counter[str]] = {}
    for index in folder.finished_parts():
        for kind, counts in folder.part_counts(index).items():
            work.setdefault(kind, Counter()).update(counts)
    details: dict[str, Any] = {"method": config.step_label.method, **work.get("work", {})}
    labels = [row["step_labels"] for row in folder.rows(["step_labels"]) if row["step_labels"] is not None]
    details |= {
        "num_labelled_responses": len(labels),
        "num_labelled_steps": sum(label is not None for each in labels for label in each),
    }
    if "unjudged_completions" in work:
        details["unjudged_completions"] = dict(work["unjudged_completions"])
    tokens = details.get("completion_tokens", details.get("verifier_tokens", 0))
    return StageResult(counted.rows_in, counted.rows_out, counted.failed, tokens, details)
