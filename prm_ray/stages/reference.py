"""reference: labelled responses -> tokens, step ends and the reference's log-probs of every response token.

In: labels/ (all columns). Out: reference/ adds step_ends, ref_logprobs, fingerprint, token_source. Sampled token ids
are kept as they are; a text from elsewhere is encoded here, once, and nothing behind this stage encodes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.core.steps import step_token_ends
from prm_ray.errors import UserError
from prm_ray.fingerprints import model_fingerprint, row_fingerprint
from prm_ray.models import (
    build_messages,
    check_vocabularies,
    context_length,
    count_parameters,
    decode,
    encode_prompt,
    encode_response,
    load_config,
    load_model,
    load_tokenizer,
    reference_model,
    resolve_model,
    token_char_ends,
)
from prm_ray.parquetfiles import read_parquet, write_parquet
from prm_ray.schemas import CACHE
from prm_ray.scorer import group_values
from prm_ray.stages.groups import group_rows
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.shards import ShardStats, map_shards
from prm_ray.stages.threads import set_threads
from prm_ray.tables import FOLDERS, StageFolder, count_failures


def source_folder(config: RunConfig) -> StageFolder:
    """labels/, made by `import` or by `label`."""
    return StageFolder(config.run.dir, "import" if config.import_.source else "label")


def check(config: RunConfig) -> None:
    """Raises `UserError` for a model without tokenizer or chat template, one whose template refuses the prompt or whose
    own code may not run, or a reference that reads other token ids."""
    policy, trust = resolve_model(config.model.name), config.model.trust_remote_code
    tokenizer = load_tokenizer(policy, config.prompt.chat_template, trust)
    load_config(policy, trust)
    encode_prompt(tokenizer, build_messages(config.prompt, "1"))
    if config.reference.model:
        check_vocabularies(policy, resolve_model(config.reference.model), trust)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    path = reference_model(config)
    source = source_folder(config)
    map_shards(
        folder,
        max(source.finished_parts()) + 1,
        ReferenceWorker,
        {"config": config, "source": source, "target": folder, "fingerprint": model_fingerprint(path)},
        name="reference",
        num_workers=config.reference.num_workers,
        num_gpus=config.reference.gpus_per_worker,
    )
    counted = count_parts(folder, ("error",), "response_tokens")
    num_parameters = count_parameters(path, config.model.trust_remote_code)
    return replace(counted, details=counted.details | {"num_parameters": num_parameters})


class ReferenceWorker:
    """One part of labels/ in, the same part of reference/ out."""

    def __init__(self, config: RunConfig, source: StageFolder, target: StageFolder, fingerprint: str):
        self._source, self._target, self._fingerprint = source, target, fingerprint
        self._cache = config.run.dir / "reference_cache"
        self._section = config.reference
        path = reference_model(config)
        self._tokenizer = load_tokenizer(path, config.prompt.chat_template, config.model.trust_remote_code)
        self._context = context_length(path, config.model.trust_remote_code)
        self._model = None
        if self._section.logprobs == "compute":
            self._model = load_model(path, config.model.dtype, config.model.trust_remote_code)

    def __call__(self, index: int) -> ShardStats:
        set_threads(self._section.num_workers)
        rows = self._source.read_part(index)
        for row in rows:
            if row["error"] is None:
                self._locate(row)
        good = [row for row in rows if row["error"] is None]
        self._add_logprobs(good, self._cache / f"part-{index:05d}.parquet")
        rows = self._target.write_part(index, rows)
        tokens = sum(len(row["response_tokens"]) for row in rows if row["error"] is None)
        return ShardStats(len(rows), count_failures(rows, "error"), tokens)

    def _locate(self, row: dict[str, Any]) -> None:
        """Fill tokens (if the text came from elsewhere) and step ends, or the reason why there are none."""
        row["token_source"] = "sampled" if row["response_tokens"] else "encoded"
        if not row["response_tokens"]:
            try:
                row["prompt_tokens"] = encode_prompt(self._tokenizer, row["messages"])
            except UserError as error:
                row["error"] = f"prompt_refused: {error}"
                return
            row["response_tokens"] = encode_response(self._tokenizer, row["text"])
        if not self._is_read(row["prompt_tokens"], row["response_tokens"]):
            length = len(row["prompt_tokens"]) + len(row["response_tokens"])
            row["error"] = f"too_long: prompt and response have {length} tokens, the model reads {self._context}"
            return
        tokens = row["response_tokens"]
        text = decode(self._tokenizer, tokens)
        row["step_ends"] = step_token_ends(text, token_char_ends(self._tokenizer, tokens), self._section.step_rule)

    def _add_logprobs(self, rows: list[dict[str, Any]], cache: Path) -> None:
        for numbers, group in group_rows(rows):
            for number, response in zip(numbers, group.responses, strict=True):
                rows[number]["fingerprint"] = row_fingerprint(self._fingerprint, group.prompt, response)
        if self._model is None:
            for row in rows:
                row["ref_logprobs"] = _sampled_logprobs(row)
            return
        known = read_cache(cache)
        for row in rows:
            row["ref_logprobs"] = known.get(row["fingerprint"])
        self._compute([row for row in rows if row["ref_logprobs"] is None])
        write_cache(cache, rows, self._target.workspace)
        self._add_mismatched(rows)

    def _compute(self, rows: list[dict[str, Any]]) -> None:
        groups = group_rows(rows)
        assert self._model is not None
        results = group_values(self._model, [group for _, group in groups], self._section.token_budget)
        for (numbers, _), logprobs in zip(groups, results, strict=True):
            for number, logprobs_T in zip(numbers, logprobs, strict=True):
                rows[number]["ref_logprobs"] = logprobs_T.tolist()

    def _add_mismatched(self, rows: list[dict[str, Any]]) -> None:
        """Score the first responses of the next training prompt of this part behind each, if the model reads so much.

        Only training asks for them, and what is held out to test must not enter it.
        """
        rows = [row for row in rows if row["split"] == "train"]
        groups = group_rows(rows)
        if not self._section.mismatched or len(groups) < 2:
            return
        following = [*groups[1:], groups[0]]
        pairs: list[tuple[list[int], PromptGroup]] = []
        for (numbers, group), (others, other) in zip(groups, following, strict=True):
            responses = [each for each in other.responses if self._is_read(group.prompt, each)]
            chosen = list(zip(numbers, responses, strict=False))[: self._section.mismatched]
            for number, response in chosen:
                rows[number] |= {"mismatched_tokens": response, "mismatched_prompt_id": rows[others[0]]["prompt_id"]}
            pairs.append(([number for number, _ in chosen], PromptGroup(group.prompt, [each for _, each in chosen])))
        assert self._model is not None
        results = group_values(self._model, [group for _, group in pairs], self._section.token_budget)
        for (numbers, _), logprobs in zip(pairs, results, strict=True):
            for number, logprobs_T in zip(numbers, logprobs, strict=True):
                rows[number]["mismatched_logprob"] = logprobs_T.sum().item()

    def _is_read(self, prompt: Sequence[int], response: Sequence[int]) -> bool:
        return self._context is None or len(prompt) + len(response) <= self._context


def read_cache(path: Path) -> dict[str, list[float]]:
    """Log-probs by fingerprint. They outlive the stage's own folder: another step rule costs no forward pass."""
    if not path.is_file():
        return {}
    table = read_parquet(path)
    return dict(zip(table["fingerprint"].to_pylist(), table["ref_logprobs"].to_pylist(), strict=True))


def write_cache(path: Path, rows: list[dict[str, Any]], workspace: Path) -> None:
    """What is not whole yet lies in the workspace, which goes when the stage is finished: beside the cache what a
    killed worker has left would stay for ever."""
    path.parent.mkdir(exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in ("fingerprint", "ref_logprobs")}
    write_parquet(path, pa.table(columns, schema=CACHE), drafts=workspace)


def _sampled_logprobs(row: dict[str, Any]) -> list[float]:
    if row["sampled_logprobs"] is None:
        raise UserError(
            f"{FOLDERS['generate']}/ has no sampled log-probs for prompt {row['prompt_id']}: "
            "reference.logprobs must be 'compute' for responses of this sampler"
        )
    return row["sampled_logprobs"]
