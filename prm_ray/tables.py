"""The tables stages meet in: columns, folders, atomic parts, and the manifest that makes a folder count as finished.

A stage writes `part-00000.parquet`, `part-00001.parquet` ... each whole or not at all (temporary name, then rename).
A part that is there is finished work and is never made twice; the folder is finished when `manifest.json`, written
last, is there. `started.json` remembers what an unfinished folder was begun with, so that a changed config is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prm_ray.errors import UserError
from prm_ray.settings import Aggregation

FOLDERS = {
    "warmup": "warmup",
    "generate": "responses",
    "label": "labels",
    "import": "labels",
    "reference": "reference",
    "step_label": "step_labels",
    "train": "checkpoint",
    "score": "scores",
    "rerank": "picks",
    "evaluate": "report",
    "processbench": "processbench",
    "policy": "policy",
    "search": "search",
}
"""Stage or measurement -> its folder under the run."""

_COUNTS = "counts"

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TOKENS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())

RESPONSES = pa.schema(
    [
        ("prompt_id", pa.string()),  # stable hash of the problem's text
        ("split", pa.string()),  # train | test
        ("problem", pa.string()),
        ("gold_answer", pa.string()),
        ("messages", _MESSAGES),
        ("prompt_tokens", _TOKENS),  # null where the text came from elsewhere and is not encoded yet
        ("sample_index", pa.int32()),
        ("text", pa.string()),
        ("response_tokens", _TOKENS),  # as sampled, end-of-text token included
        ("sampled_logprobs", _FLOATS),  # raw log-probs of the sampler, one a response token; null if it gave none
        ("finish_reason", pa.string()),  # stop | length | null (elsewhere)
        ("generator", pa.string()),
        ("error", pa.string()),  # why there is no response; null = all is well
    ]
)
LABELS = RESPONSES.append(pa.field("answer", pa.string())).append(pa.field("correct", pa.bool_()))
LABELS = LABELS.append(pa.field("label_error", pa.string()))  # why `correct` is null
LABELS = LABELS.append(pa.field("soft_label", pa.float64()))  # chance of being right; `correct` is then whether > 0.5
REFERENCE = LABELS.append(pa.field("step_ends", _TOKENS)).append(pa.field("ref_logprobs", _FLOATS))
REFERENCE = REFERENCE.append(pa.field("fingerprint", pa.string())).append(pa.field("token_source", pa.string()))
REFERENCE = REFERENCE.append(pa.field("mismatched_tokens", _TOKENS))  # a response to another prompt, or null
REFERENCE = REFERENCE.append(pa.field("mismatched_logprob", pa.float32()))  # the reference's, behind this row's prompt
STEP_LABELS = REFERENCE.append(pa.field("step_labels", _FLOATS))  # S chances in [0, 1]; null = not labelled
STEP_LABELS = STEP_LABELS.append(pa.field("step_label_error", pa.string()))  # why the row or a step of it has none
SCORES = REFERENCE.append(pa.field("token_rewards", _FLOATS)).append(pa.field("step_rewards", _FLOATS))
SCORES = SCORES.append(pa.field("policy_logprobs", _FLOATS))  # log pi of each response token
for _aggregation in get_args(Aggregation):
    SCORES = SCORES.append(pa.field(f"reward_{_aggregation}", pa.float32()))
CACHE = pa.schema([("fingerprint", pa.string()), ("ref_logprobs", _FLOATS)])
"""reference_cache/: reference log-probs by fingerprint (weights, tokenizer, chat template, token ids)."""
PICKS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("method", pa.string()),
        ("n", pa.int32()),
        ("accuracy", pa.float64()),  # mean over subsamples of n candidates: the share whose pick is right
        ("sample_index", pa.int32()),  # the pick among all candidates; null unless n = all of them
        ("answer", pa.string()),
        ("correct", pa.bool_()),
    ]
)
PROCESSBENCH = pa.schema(
    [
        ("subset", pa.string()),
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("label", pa.int32()),  # 0-based first wrong step; -1 = none is wrong
        ("num_empty_steps", pa.int32()),
        ("prompt_tokens", _TOKENS),
        ("response_tokens", _TOKENS),
        ("step_ends", _TOKENS),  # one a given step; an empty step may end where the one before it does
        ("step_rewards", _FLOATS),
        ("error", pa.string()),
    ]
)
SEARCH = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("problem", pa.string()),
        ("gold_answer", pa.string()),
        ("strategy", pa.string()),
        ("size", pa.int32()),
        ("candidate", pa.int32()),  # its number; null in the one row of a problem that could not be asked
        ("parent", pa.int32()),  # the candidate it continues; -1 = none
        ("tokens", _TOKENS),  # behind those of its parent
        ("text", pa.string()),  # whole; null of one that was not continued to its end
        ("finish_reason", pa.string()),  # stop | length | null (could go on)
        ("num_sampled", pa.int32()),  # tokens drawn for it, dropped ones too
        ("step_rewards", _FLOATS),
        ("step_ends", _TOKENS),  # offsets into all of its tokens, its parents' too
        ("value", pa.float64()),
        ("competes", pa.bool_()),  # one of those that the answer was picked from
        ("picked_by", pa.list_(pa.string())),  # ways of picking that make it the answer
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("label_error", pa.string()),
        ("error", pa.string()),
    ]
)
SCHEMAS = {
    "generate": RESPONSES,
    "label": LABELS,
    "import": LABELS,
    "reference": REFERENCE,
    "step_label": STEP_LABELS,
    "score": SCORES,
    "rerank": PICKS,
    "processbench": PROCESSBENCH,
    "policy": LABELS,
    "search": SEARCH,
}
"""Stage -> schema of the table it makes; every table carries the columns of the one before it."""


class StageFolder:
    """The folder of one stage of one run."""

    def __init__(self, run_dir: str | Path, stage: str):
        self.stage = stage
        self.path = Path(run_dir) / FOLDERS[stage]

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path.parent, self.stage))

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def is_done(self) -> bool:
        return self.manifest_path.is_file()

    def manifest(self) -> dict[str, Any]:
        """What the finished stage wrote. Raises `UserError` if it is not finished."""
        if not self.is_done():
            raise UserError(f"{str(self.path)!r} is not finished; run the {self.stage} stage first")
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def begin(self, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Open for work; a folder begun with other settings is refused, never mixed or silently thrown away.

        So is a link: what is behind it belongs to another run.
        """
        if self.path.is_symlink():
            raise UserError(
                f"{str(self.path)!r} is a link to {str(self.path.parent / self.path.readlink())!r}, which is not "
                "finished: finish it there, or remove the link"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_identity(identity, defaults)
        write_json(self.path / "started.json", identity)

    def check_identity(self, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Raises `UserError` naming each setting that differs from what the folder was begun with.

        A setting that did not exist then had its value of `defaults`, so a newer version goes on with an older folder.
        """
        started = self.path / "started.json"
        if not started.is_file():
            return
        before = json.loads(json.dumps(defaults or {})) | json.loads(started.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(identity))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            lines = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
            raise UserError(
                f"{str(self.path)!r} was made with other settings ({lines}): "
                f"choose another run.dir, or redo from here on with --fresh {self.stage}"
            )

    def finish(self, manifest: dict[str, Any]) -> None:
        write_json(self.manifest_path, manifest)

    def clear(self) -> None:
        """Remove the folder; the manifest goes first, so a kill half-way leaves it unfinished, not wrong.

        Of a link only the link itself: what is behind it belongs to another run.
        """
        if self.path.is_symlink():
            self.path.unlink()
            return
        self.manifest_path.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def part_path(self, index: int) -> Path:
        return self.path / f"part-{index:05d}.parquet"

    def finished_parts(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("part-")) for path in self.path.glob("part-*.parquet"))

    def write_part(
        self, index: int, rows: Sequence[dict[str, Any]], counts: dict[str, dict[str, int]] | None = None
    ) -> None:
        """Write one part whole or not at all; missing columns are null, unknown ones an error.

        `counts` is work that no row shows; it lies in the file's own metadata, so it is there when the part is.
        """
        schema = SCHEMAS[self.stage]
        unknown = {key for row in rows for key in row} - set(schema.names)
        assert not unknown, f"columns {unknown} are not in the {self.stage} schema"
        table = pa.Table.from_pylist(list(rows), schema=schema)
        if counts is not None:
            table = table.replace_schema_metadata({_COUNTS: json.dumps(counts)})
        write_parquet(self.part_path(index), table)

    def read_part(self, index: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
        return read_parquet(self.part_path(index), columns).to_pylist()

    def part_counts(self, index: int) -> dict[str, dict[str, int]]:
        """The `counts` a part was written with."""
        return json.loads((pq.read_schema(self.part_path(index)).metadata or {}).get(_COUNTS.encode(), b"{}"))

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        for index in self.finished_parts():
            yield from self.read_part(index, columns)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file. Raises `UserError` if it is truncated or not Parquet."""
    with _readable(path):
        return pq.read_table(path, columns=columns)


def column_names(path: Path) -> list[str]:
    """Columns of a Parquet file; one that an earlier version wrote may lack some. Raises as `read_parquet` does."""
    with _readable(path):
        return pq.read_schema(path).names


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{str(path)!r} is not a readable Parquet file: {reason}") from None


def outcome_labels(table: pa.Table) -> pa.ChunkedArray:
    """The label that training takes of each row, float64: `soft_label` where there is one, else 1 or 0; null = none.

    A table without the column `soft_label`, as earlier versions wrote it, has none.
    """
    hard = pc.cast(table["correct"], pa.float64())
    return pc.coalesce(table["soft_label"], hard) if "soft_label" in table.column_names else hard


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write one Parquet file whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def count_failures(rows: Iterable[dict[str, Any]], column: str) -> dict[str, int]:
    """Rows per reason: the text of an error column up to its first colon."""
    counts: dict[str, int] = {}
    for row in rows:
        if reason := row.get(column):
            key = reason.split(":", 1)[0]
            counts[key] = counts.get(key, 0) + 1
    return counts


def in_words(counts: Mapping[str, int]) -> str:
    """`2 prompt too long, 1 timeout`, of rows by reason; `none` of none."""
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items()) or "none"
