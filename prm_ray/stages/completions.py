"""Monte Carlo step labels: from the end of each step the generator completes the response several times.

Math-Shepherd (arXiv 2312.08935). Token ids in, token ids out: what is completed is the prompt's and the response's own
tokens, never encoded again. A completion may be as long as a response of `generate` could still become, and prefix and
completion are judged together by the run's own judge, so a label estimates how often the generator, once it stands
there, gets a right answer.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_ray.answers import Judge, Judgement
from prm_ray.config import RunConfig
from prm_ray.core.steplabels import soft_label
from prm_ray.errors import UserError
from prm_ray.models import decode, load_tokenizer
from prm_ray.problems import hash_problem
from prm_ray.stages.labelshards import LabelShard, asked_rows, read_shard
from prm_ray.stages.sampler import make_sampler
from prm_ray.stages.sampling import Sample, SamplerOptions, sampler_options
from prm_ray.stages.shards import ShardStats
from prm_ray.tables import StageFolder, count_failures

SHARDS_AT_ONCE = 2
"""While the completions of one shard are judged, the engine samples those of the next."""


@dataclass(frozen=True)
class Prefix:
    """The beginning of one or more responses to a prompt, up to the end of a step.

    Equal ones are one key: responses that share their first steps, or are equal, share completions.
    """

    prompt_id: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    gold_answer: str | None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


@dataclass(frozen=True)
class Label:
    """What became of a prefix: its label, or the reason why it has none."""

    value: float | None
    error: str | None = None


def completion_options(config: RunConfig, model: str) -> SamplerOptions:
    """As `generate` samples, but so many for each prefix, and other random numbers."""
    once = config.generate.model_copy(update={"num_samples": 1})
    options = sampler_options(config.model_copy(update={"generate": once}), model)
    seed = _seed(f"{config.run.seed} step_label")
    decoding = replace(options.decoding, num_samples=config.step_label.num_completions)
    return replace(options, decoding=decoding, seed=seed)


def check_gold_answers(config: RunConfig) -> None:
    """Raises `UserError` if no training response has one: responses from elsewhere may come with their labels alone."""
    source = StageFolder(config.run.dir, "reference")
    rows = source.rows(["split", "gold_answer"])
    if not any(row["gold_answer"] is not None for row in rows if row["split"] == "train"):
        raise UserError(
            f"{str(source.path)!r} has no gold answers, and a completion cannot be judged without one: "
            "name their field in import.fields (gold_answer = ...)"
        )


class CompletionWorker:
    """One engine and one judge; several shards are in it at a time."""

    def __init__(self, config: RunConfig, folder: StageFolder, options: SamplerOptions, shards: list[LabelShard]):
        self._config, self._folder, self._options, self._shards = config, folder, options, shards
        self._tokenizer = load_tokenizer(options.model, config.prompt.chat_template, config.model.trust_remote_code)
        self._judge = Judge(config.label)
        self._sampler = make_sampler(options)

    async def __call__(self, shard: int) -> ShardStats:
        rows = await asyncio.to_thread(read_shard, self._config, self._shards[shard])
        prefixes = {id(row): _open_prefixes(row) for row in asked_rows(rows, self._config.step_label.num_responses)}
        labels, counts = await self._labels(list(dict.fromkeys(one for each in prefixes.values() for one in each)))
        for row in rows:
            if id(row) in prefixes:
                row |= _columns(row, [labels[prefix] for prefix in prefixes[id(row)]])
        rows = await asyncio.to_thread(self._folder.write_part, shard, rows, counts)
        failed = count_failures(rows, "step_label_error")
        return ShardStats(len(rows), failed, counts["work"]["completion_tokens"])

    async def _labels(self, prefixes: list[Prefix]) -> tuple[dict[Prefix, Label], dict[str, dict[str, int]]]:
        """Prefix -> its label, and what that took."""
        labels = {prefix: Label(None, error) for prefix in prefixes if (error := self._obstacle(prefix))}
        asked = sorted((prefix for prefix in prefixes if prefix not in labels), key=lambda prefix: prefix.length)
        samples = await self._sampler.sample(
            [[*prefix.prompt, *prefix.tokens] for prefix in asked],
            [_seed(f"{self._options.seed} {prefix.prompt_id} {prefix.tokens}") for prefix in asked],
            [self._room(prefix) for prefix in asked],
        )
        judgements = await asyncio.to_thread(self._judge_all, asked, samples)
        labels |= {prefix: _label(judged) for prefix, judged in zip(asked, judgements, strict=True)}
        work = {
            "num_prefixes": len(asked),
            "num_completions": sum(map(len, samples)),
            "completion_tokens": sum(len(sample.tokens) for each in samples for sample in each),
            "prefix_tokens": sum(prefix.length for prefix in asked),
        }
        unjudged = count_failures([one._asdict() for judged in judgements for one in judged], "error")
        return labels, {"work": work, "unjudged_completions": unjudged}

    def _obstacle(self, prefix: Prefix) -> str | None:
        """Why this prefix cannot be completed; can only be so with responses from elsewhere."""
        if prefix.gold_answer is None:
            return "no_gold_answer: a completion cannot be judged without one"
        if self._room(prefix) < 1:
            return (
                f"no_room: a step ends at token {len(prefix.tokens)} behind a prompt of {len(prefix.prompt)}; "
                f"generate.max_tokens is {self._config.generate.max_tokens}, prompt and response may have "
                f"{self._options.max_model_len}"
            )
        return None

    def _room(self, prefix: Prefix) -> int:
        """Tokens a response of `generate` that begins so may still have."""
        unwritten = self._config.generate.max_tokens - len(prefix.tokens)
        return min(unwritten, self._options.max_model_len - prefix.length)

    def _judge_all(self, prefixes: Sequence[Prefix], samples: Sequence[Sequence[Sample]]) -> list[list[Judgement]]:
        """Verdicts on every completion behind its prefix; equal texts, which are frequent, are judged once."""
        judge = functools.cache(self._judge)
        judgements = []
        for prefix, completions in zip(prefixes, samples, strict=True):
            assert prefix.gold_answer is not None  # `_obstacle` has seen to it
            texts = [decode(self._tokenizer, [*prefix.tokens, *sample.tokens]) for sample in completions]
            judgements.append([judge(text, prefix.gold_answer) for text in texts])
        return judgements


def _open_prefixes(row: dict[str, Any]) -> list[Prefix]:
    """Those that end where a step ends but the response goes on; at its end its outcome is known."""
    *ends, _ = row["step_ends"]
    prompt, tokens = tuple(row["prompt_tokens"]), tuple(row["response_tokens"])
    return [Prefix(row["prompt_id"], prompt, tokens[:end], row["gold_answer"]) for end in ends]


def _label(judgements: Sequence[Judgement]) -> Label:
    value = soft_label([judgement.correct for judgement in judgements])
    if value is not None:
        return Label(value)
    reasons = Counter(str(judgement.error).split(":", 1)[0] for judgement in judgements)
    return Label(None, f"unjudged: none of a step's {len(judgements)} completions ({', '.join(reasons)})")


def _columns(row: dict[str, Any], labels: Sequence[Label]) -> dict[str, Any]:
    """The last step has the outcome; one without a label is null, and the first reason for that is kept."""
    error = next((label.error for label in labels if label.error), None)
    soft = row.get("soft_label")
    outcome = float(row["correct"]) if soft is None else soft
    return {"step_labels": [*(label.value for label in labels), outcome], "step_label_error": error}


def _seed(text: str) -> int:
    return int(hash_problem(text), 16) % 2**31
