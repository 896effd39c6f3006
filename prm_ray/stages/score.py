"""score: reference table + checkpoint -> token, step and response rewards of the held-out responses.

A reward model with a head, trained here or published (`score.model`), gives a logit at the end of each step as its
step reward, and nothing for tokens.

In: reference/ (test rows without error). Out: scores/ adds token_rewards, step_rewards, policy_logprobs and a
reward an aggregation.
The reference's log-probs come from the table, so this costs one forward pass of the policy. policy_logprobs are kept
beside the rewards, so that `rerank` can compare rewards with and without the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prm_ray.config import RunConfig
from prm_ray.core.rewards import AGGREGATIONS, aggregate, step_rewards
from prm_ray.headscorer import HeadScorer
from prm_ray.models import load_model, load_tokenizer, read_prm_json, reference_model, write_prm_json
from prm_ray.publishedscorer import PublishedScorer, load_format
from prm_ray.scorer import Scorer
from prm_ray.stages.groups import group_rows
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.stages.steprewards import add_published_rewards, add_step_rewards
from prm_ray.stages.threads import set_threads
from prm_ray.tables import StageFolder, count_failures
from prm_ray.texts import cut_steps


def check(config: RunConfig) -> None:
    """Raises `UserError` for a published model that is not there or not of its style, before anything is sampled."""
    if config.score.model is not None and config.score.style is not None:
        load_format(config.score.model, config.score.style)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    source = StageFolder(config.run.dir, "reference")
    if config.score.model is None:
        _show_how_it_scores(config)
    map_shards(
        folder,
        max(source.finished_parts()) + 1,
        ScoreWorker,
        {"config": config, "source": source, "target": folder},
        name="score",
        num_workers=config.score.num_workers,
        num_gpus=config.score.gpus_per_worker,
    )
    return count_parts(folder, ("error",), "response_tokens")


def _show_how_it_scores(config: RunConfig) -> None:
    """Whoever loads the checkpoint, a program or the server, then rewards as this table does."""
    checkpoint = StageFolder(config.run.dir, "train").path
    before = read_prm_json(checkpoint)
    now = before | {"with_reference": config.score.with_reference, "beta_schedule": config.score.beta_schedule}
    if now != before:  # a file that changes at an address has every machine copy the model anew
        write_prm_json(checkpoint, now)


class ScoreWorker:
    """One part of reference/ in, the held-out rows of it, scored, out."""

    def __init__(self, config: RunConfig, source: StageFolder, target: StageFolder):
        self._source, self._target, self._num_workers = source, target, config.score.num_workers
        checkpoint = str(StageFolder(config.run.dir, "train").path)
        self._add_rewards: Callable[[list[dict[str, Any]]], None]
        if config.score.model is not None:
            self._add_rewards = _Published(config)
        elif config.train.reward == "log_ratio":
            self._add_rewards = _LogRatios(config, checkpoint)
        else:
            self._add_rewards = _Logits(config, checkpoint)

    def __call__(self, index: int) -> ShardStats:
        set_threads(self._num_workers)
        rows = [row for row in self._source.read_part(index) if row["split"] == "test"]
        good = [row for row in rows if row["error"] is None]
        self._add_rewards(good)
        good = [row for row in good if row["error"] is None]
        for row in good:
            num_tokens = len(row["response_tokens"])
            row |= {f"reward_{how}": aggregate(row["step_rewards"], how, num_tokens) for how in AGGREGATIONS}
        rows = self._target.write_part(index, rows)
        tokens = sum(len(row["response_tokens"]) for row in rows if row["error"] is None)
        return ShardStats(len(rows), count_failures(rows, "error"), tokens)


class _LogRatios:
    """Adds what an implicit PRM says: rewards of tokens, and of steps."""

    def __init__(self, config: RunConfig, checkpoint: str):
        facts = read_prm_json(checkpoint)
        self._scorer = Scorer(
            load_model(checkpoint, config.model.dtype, config.model.trust_remote_code),
            None,
            load_tokenizer(checkpoint, trust_remote_code=config.model.trust_remote_code),
            beta=facts["beta"],
            step_rule=facts["step_rule"],
            token_budget=config.score.token_budget,
            with_reference=config.score.with_reference,
            beta_schedule=config.score.beta_schedule,
        )

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        grouped = group_rows(rows)
        reference = [[torch.tensor(rows[number]["ref_logprobs"]) for number in numbers] for numbers, _ in grouped]
        policy = self._scorer.policy_logprobs([group for _, group in grouped])
        results = zip(grouped, policy, self._scorer.rewards(policy, reference), strict=True)
        for (numbers, _), logprobs, rewards in results:
            for number, logprobs_T, token_rewards_T in zip(numbers, logprobs, rewards, strict=True):
                row = rows[number]
                row["token_rewards"], row["policy_logprobs"] = token_rewards_T, logprobs_T.tolist()
                row["step_rewards"] = step_rewards(token_rewards_T, row["step_ends"])


class _Logits:
    """Adds what a head says at the end of each step."""

    def __init__(self, config: RunConfig, checkpoint: str):
        self._scorer = HeadScorer.from_pretrained(
            checkpoint,
            dtype=config.model.dtype,
            token_budget=config.score.token_budget,
            trust_remote_code=config.model.trust_remote_code,
        )

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        add_step_rewards(rows, self._scorer.step_logits)


class _Published:
    """Adds what a published reward model says of each step; a response that it cannot read becomes an error row."""

    def __init__(self, config: RunConfig):
        section, self._step_rule = config.score, config.reference.step_rule
        assert section.model is not None and section.style is not None
        self._scorer = PublishedScorer.from_pretrained(
            section.model, style=section.style, dtype=config.model.dtype, token_budget=section.token_budget
        )
        trust = config.model.trust_remote_code
        self._tokenizer = load_tokenizer(reference_model(config), config.prompt.chat_template, trust)

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        cuts = [cut_steps(self._tokenizer, row["response_tokens"], self._step_rule)[0] for row in rows]
        solutions = [(row["problem"], steps) for row, steps in zip(rows, cuts, strict=True)]
        add_published_rewards(rows, solutions, self._scorer)
