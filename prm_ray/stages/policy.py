"""policy: does training as a reward model change how well the model answers (arXiv 2412.01981 Table 3)?

In: the held-out problems of reference/, checkpoint/, and the model it was trained from. Out: policy/, a row an answer
(`generator` says whose), report.json, and two lines on stdout.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import numpy as np

from prm_ray.answers import Judge
from prm_ray.config import RunConfig
from prm_ray.core.metrics import difference_interval, percentile_interval, resample_means
from prm_ray.errors import UserError
from prm_ray.models import base_model, is_adapter
from prm_ray.problems import Problem
from prm_ray.stages.asking import MAX_STARTS
from prm_ray.stages.generate import GenerateWorker
from prm_ray.stages.heldout import held_out_problems
from prm_ray.stages.label import judged
from prm_ray.stages.report import bracket, percent, points_with_interval
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.sampling import pick_backend, sampler_options
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.tables import StageFolder, count_failures, in_words, write_json

PRM, GENERATOR = "prm", "generator"


def check(config: RunConfig) -> None:
    """Raises `UserError` if there is nothing to judge by, the judge does not load, or no sampler runs this model."""
    held_out_problems(config, config.policy.num_problems)
    Judge(config.label).close()
    pick_backend(sampling_config(config))


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    problems = [("test", problem) for problem in held_out_problems(config, config.policy.num_problems)]
    sampling = sampling_config(config)
    size = config.generate.problems_per_shard
    shards: list[list[tuple[str, Problem]]] = []
    for whose, model in ((PRM, _checkpoint(config)), (GENERATOR, base_model(config))):
        # One model after the other: the second one's shards are numbered behind those of the first, which are done.
        shards = shards + [problems[start : start + size] for start in range(0, len(problems), size)]
        options = sampler_options(sampling, model)
        map_shards(
            folder,
            len(shards),
            PolicyWorker,
            {"config": sampling, "folder": folder, "options": options, "shards": shards, "whose": whose},
            name=f"policy {whose}",
            num_workers=sampling.generate.num_engines,
            num_gpus=sampling.generate.gpus_per_engine,
            max_starts=MAX_STARTS,
        )
    counted = count_parts(folder, ("error", "label_error"), "response_tokens")
    report = make_report(config, list(folder.rows(["prompt_id", "generator", "correct", "error", "label_error"])))
    write_json(folder.workspace / "report.json", report)
    print(f"{text(report)}\nreport: {folder.path / 'report.json'}", flush=True)
    return StageResult(len(problems), counted.rows_out, counted.failed, counted.tokens, {"backend": options.backend})


def sampling_config(config: RunConfig) -> RunConfig:
    """The run's settings with `[policy]`'s way of sampling. Raises `UserError` if vLLM was asked for an adapter."""
    update: dict[str, Any] = {"num_samples": config.policy.num_samples, "temperature": config.policy.temperature}
    if is_adapter(_checkpoint(config)):
        if config.generate.backend == "vllm":
            raise UserError("generate.backend 'vllm' cannot sample from an adapter: policy needs auto or transformers")
        update["backend"] = "transformers"  # for both models, so that nothing but the weights differs
    return config.model_copy(update={"generate": config.generate.model_copy(update=update)})


def _checkpoint(config: RunConfig) -> str:
    return str(StageFolder(config.run.dir, "train").path)


class PolicyWorker(GenerateWorker):
    """Samples like `generate` and judges like `label`, a shard at a time."""

    def __init__(self, *, whose: str, **generate: Any):
        super().__init__(**generate)
        self._whose, self._judge = whose, Judge(self._config.label)

    async def __call__(self, shard: int) -> ShardStats:
        rows = await self.responses(shard)
        rows = await asyncio.to_thread(lambda: [judged(self._judge, row) | {"generator": self._whose} for row in rows])
        rows = await asyncio.to_thread(self._folder.write_part, shard, rows)
        tokens = sum(len(row["response_tokens"] or ()) for row in rows)
        failed = count_failures(rows, "error") | count_failures(rows, "label_error")
        return ShardStats(len(rows), failed, tokens)


def make_report(config: RunConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of both models over the problems that both gave an answer to, and their difference, paired.

    An answer that could not be judged counts as not right, as in the run's report.
    """
    right: dict[str, dict[str, list[bool]]] = {PRM: {}, GENERATOR: {}}
    for row in rows:
        if row["error"] is None:
            right[row["generator"]].setdefault(row["prompt_id"], []).append(row["correct"] is True)
    shared = [prompt_id for prompt_id in right[PRM] if prompt_id in right[GENERATOR]]
    if not shared:
        failed = in_words(count_failures(rows, "error"))
        raise UserError(f"there is no problem that both models answered (failed: {failed}); nothing to compare")
    values_PM = np.array([[np.mean(right[whose][prompt_id]) for whose in (PRM, GENERATOR)] for prompt_id in shared])
    resampled_RM = resample_means(values_PM, config.policy.num_bootstrap, config.run.seed)
    means_M = values_PM.mean(axis=0)
    intervals = [percentile_interval(float(mean), resampled_RM[:, place]) for place, mean in enumerate(means_M)]
    difference = difference_interval(float(means_M[0]), float(means_M[1]), resampled_RM[:, 0], resampled_RM[:, 1])
    return {
        "accuracy": dict(zip((PRM, GENERATOR), map(asdict, intervals), strict=True)),
        "difference": asdict(difference),
        "num_problems": len(shared),
        "num_samples": config.policy.num_samples,
        "temperature": config.policy.temperature,
        "num_that_could_not_be_judged": {
            whose: sum(row["label_error"] is not None for row in rows if row["generator"] == whose)
            for whose in (PRM, GENERATOR)
        },
        "failed": count_failures(rows, "error"),
        "seed": config.run.seed,
    }


def text(report: dict[str, Any]) -> str:
    ours, theirs = (report["accuracy"][whose] for whose in (PRM, GENERATOR))
    how = "greedy" if report["temperature"] == 0 else f"temperature {report['temperature']:g}"
    return (
        f"right on {report['num_problems']} held-out problems, {report['num_samples']} {how} answer(s) each:\n"
        f"  as trained   {percent(ours['value'])} {bracket(ours)}\n"
        f"  before       {percent(theirs['value'])} {bracket(theirs)}\n"
        f"  difference   {points_with_interval(report['difference'])}"
    )
