"""A small labelled table with reference log-probs, made without the stages before it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.core.steps import step_token_ends
from prm_ray.models import build_messages, encode_prompt, encode_response, load_model, load_tokenizer, token_char_ends
from prm_ray.scorer import group_values
from prm_ray.stages.groups import group_rows
from prm_ray.tables import StageFolder


def tiny_config(run_dir: Path, model: str, /, **sections: dict[str, Any]) -> RunConfig:
    base: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run_dir)},
        "model": {"name": model, "dtype": "float32"},
        "generate": {"backend": "transformers", "num_samples": 4, "max_tokens": 12, "problems_per_shard": 4},
        "problems": {"num_train": 12, "num_test": 4},
        "label": {"judge": "tests.judges:even_length", "timeout_seconds": 120},
        "reference": {"step_rule": "newline"},
        "train": {"lr": 1e-2, "beta": 0.5, "batch_size": 8, "checkpoint_every": 2, "validation_fraction": 0.2},
        "rerank": {"sizes": [1, 2, 4]},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return RunConfig.model_validate(base)


def mark_done(config: RunConfig, stages: Sequence[str], at: str = "noon", after: str | None = None) -> None:
    """Leave each stage's folder as a finished stage does, without anything in it; the first builds on `after`."""
    before = after
    for stage in stages:
        folder = StageFolder(config.run.dir, stage)
        folder.begin(config.identity(stage) | ({f"{before}.finished_at": at} if before else {}))
        folder.finish({"stage": stage, "finished_at": at, "seconds": 1.0})
        before = stage


def write_reference_table(config: RunConfig, num_prompts: int = 10, num_samples: int = 4) -> StageFolder:
    """Random prompts and responses; a response is right if its first token is even, so there is something to learn."""
    rng = random.Random(0)
    rows = []
    for prompt in range(num_prompts):
        prompt_tokens = [rng.randrange(10, 250) for _ in range(4)]
        for sample in range(num_samples):
            tokens = [rng.randrange(10, 250) for _ in range(rng.randint(2, 6))]
            row = {"prompt_id": f"p{prompt}", "split": "train", "problem": f"problem {prompt}", "sample_index": sample}
            row |= {"prompt_tokens": prompt_tokens, "response_tokens": tokens, "correct": tokens[0] % 2 == 0}
            rows.append(row | {"step_ends": [len(tokens)], "text": "x"})
    model = load_model(config.model.name, "float32")
    for numbers, group in group_rows(rows):
        (logprobs,) = group_values(model, [group], 1000)
        for number, values in zip(numbers, logprobs, strict=True):
            rows[number]["ref_logprobs"] = values.tolist()
    folder = StageFolder(config.run.dir, "reference")
    folder.path.mkdir(parents=True)
    folder.write_part(0, rows)
    return folder


def finish_before(config: RunConfig, stage: str, write: Callable[[], object]) -> None:
    """A run with all before a stage done, so that it can be given as a command; `write` makes the table just before."""
    stages = config.before(stage)
    mark_done(config, stages[:-1])
    write()
    mark_done(config, stages[-1:], after=stages[-2])


def finish_up_to_training(config: RunConfig) -> None:
    finish_before(config, "train", lambda: write_reference_table(config))


def write_reference_texts(config: RunConfig, parts: list[list[dict[str, Any]]]) -> StageFolder:
    """Rows of a problem, a text and more columns, encoded and cut into steps as `reference` does; no log-probs."""
    tokenizer = load_tokenizer(config.model.name)
    folder = StageFolder(config.run.dir, "reference")
    folder.path.mkdir(parents=True)
    for index, rows in enumerate(parts):
        folder.write_part(index, [_encoded(config, tokenizer, row) for row in rows])
    return folder


def _encoded(config: RunConfig, tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    prompt = encode_prompt(tokenizer, build_messages(config.prompt, row["problem"]))
    tokens = encode_response(tokenizer, row["text"])
    ends = step_token_ends(row["text"], token_char_ends(tokenizer, tokens), config.reference.step_rule)
    made = {"prompt_id": row["problem"], "prompt_tokens": prompt, "response_tokens": tokens, "step_ends": ends}
    return {"split": "train", "gold_answer": "1", "sample_index": 0, "correct": True} | made | row
