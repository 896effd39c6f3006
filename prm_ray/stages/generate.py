"""Problems -> responses: sample `generate.num_samples` responses a problem.

Input: the problems of both splits, train first. Output: the `responses/` table, a row a (problem, sample); a problem
that cannot be asked is one row with its reason in `error`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import base_model, build_messages, decode, encode_prompt, load_tokenizer, resolve_model
from prm_ray.problems import Problem, check_problems, hash_problem
from prm_ray.stages.asking import MAX_STARTS, Answer, Asked, Asker
from prm_ray.stages.ownsampler import find_sampler
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.sampler import make_sampler
from prm_ray.stages.sampling import Sample, SamplerOptions, sampler_options
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.stages.storedproblems import Task, store_problems
from prm_ray.tables import StageFolder, count_failures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHARDS_AT_ONCE = 2
"""While the last responses of one shard end, the next one fills the engine."""


def check(config: RunConfig) -> None:
    """Raises `UserError` for bad problems, a model without tokenizer or chat template, one whose template refuses the
    prompt, or a sampler that cannot run."""
    check_problems(config)
    model = resolve_model(config.model.name)
    tokenizer = load_tokenizer(model, config.prompt.chat_template, config.model.trust_remote_code)
    encode_prompt(tokenizer, build_messages(config.prompt, "1"))
    if ":" in (backend := sampler_options(config, model).backend):
        find_sampler(backend)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    model = base_model(config)
    options = sampler_options(config, model)
    shards = store_problems(config, folder, config.generate.problems_per_shard)
    map_shards(
        folder,
        len(shards),
        GenerateWorker,
        {"config": config, "folder": folder, "options": options, "shards": shards},
        name="generate",
        num_workers=config.generate.num_engines,
        num_gpus=config.generate.gpus_per_engine,
        concurrency=_SHARDS_AT_ONCE,
        max_starts=MAX_STARTS,
    )
    counted = count_parts(folder, ("error",), "response_tokens")
    num_problems = shards.num_problems
    details = {"backend": options.backend, "model": model, "problems": num_problems, **counted.details}
    return StageResult(num_problems, counted.rows_out, counted.failed, counted.tokens, details)


def prompt_row(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast, options: SamplerOptions, split: str, problem: Problem
) -> dict[str, Any]:
    """The columns all samples of a problem share, encoded; `error` says why it cannot be asked."""
    row: dict[str, Any] = {
        "prompt_id": problem.prompt_id,
        "split": split,
        "problem": problem.problem,
        "gold_answer": problem.answer,
        "sample_index": 0,
        "response_tokens": None,
        "generator": config.model.name,
        "error": problem.error,
    }
    if problem.problem is None:
        return row
    row["messages"] = build_messages(config.prompt, problem.problem)
    try:
        row["prompt_tokens"] = encode_prompt(tokenizer, row["messages"])
    except UserError as error:
        row["error"] = row["error"] or f"prompt_refused: {error}"
        return row
    length, limit = len(row["prompt_tokens"]), min(config.prompt.max_tokens, options.max_model_len - 1)
    if length > limit and row["error"] is None:
        row["error"] = f"prompt_too_long: {length} tokens, at most {limit}"
    return row


class GenerateWorker:
    """One engine; several shards are in it at a time."""

    def __init__(
        self,
        config: RunConfig,
        folder: StageFolder,
        options: SamplerOptions,
        shards: Sequence[list[Task]],
    ):
        self._config, self._folder, self._shards, self._options = config, folder, shards, options
        self._tokenizer = load_tokenizer(options.model, config.prompt.chat_template, config.model.trust_remote_code)
        self._asker = Asker(make_sampler(options))

    async def __call__(self, shard: int) -> ShardStats:
        filled = await self.responses(shard)
        filled = await asyncio.to_thread(self._folder.write_part, shard, filled)
        tokens = sum(len(row["response_tokens"] or ()) for row in filled)
        return ShardStats(len(filled), count_failures(filled, "error"), tokens)

    async def responses(self, shard: int) -> list[dict[str, Any]]:
        """A row a (problem, sample) of this shard; a problem that cannot be asked is one row with its reason."""
        rows = [
            prompt_row(self._config, self._tokenizer, self._options, split, problem)
            for split, problem in self._shards[shard]
        ]
        asked = [
            Asked(row["prompt_id"], row["prompt_tokens"], self._seed(row["prompt_id"]))
            for row in rows
            if row["error"] is None
        ]
        answers = await self._asker.ask(asked, self._folder.shared_workspace / f".asked-{shard:05d}")
        by_id = {prompt.prompt_id: answer for prompt, answer in zip(asked, answers, strict=True)}
        return [one for row in rows for one in self._answered(row, by_id.get(row["prompt_id"]))]

    def _answered(self, row: dict[str, Any], answer: Answer | None) -> list[dict[str, Any]]:
        if answer is None:
            return [row]
        if isinstance(answer, str):
            return [row | {"error": answer}]
        return [row | self._response_columns(index, sample) for index, sample in enumerate(answer)]

    def _response_columns(self, index: int, sample: Sample) -> dict[str, Any]:
        """A response that is nothing but its end token is kept with its tokens; one without any token is an error."""
        return {
            "sample_index": index,
            "text": decode(self._tokenizer, sample.tokens),
            "response_tokens": sample.tokens,
            "sampled_logprobs": sample.logprobs,
            "finish_reason": sample.finish_reason,
            "error": None if sample.tokens else "empty_response",
        }

    def _seed(self, prompt_id: str) -> int:
        """Different for every problem and far apart, for sample i of a request is drawn with seed + i."""
        return int(hash_problem(f"{self._config.run.seed} {prompt_id}"), 16) % 2**31
