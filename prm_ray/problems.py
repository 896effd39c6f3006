"""Problems of a run: JSONL, Parquet, a hub's data set, or made on the spot. Impossible input is refused early."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.objectstore import is_remote, location
from prm_ray.parquetfiles import parquet_rows
from prm_ray.settings import ProblemsSection

Split = Literal["train", "test", "warmup"]


@dataclass(frozen=True)
class Problem:
    """A problem and its gold answer. `problem` or `answer` is None where the source has none: a row kept as an error.

    `row` is the number in its source; it tells two problems without text apart.
    """

    problem: str | None
    answer: str | None
    solution: str | None = None
    row: int = 0

    @property
    def prompt_id(self) -> str:
        """Stable hash of the text (of the row number where there is no text)."""
        return hash_problem(self.problem if self.problem is not None else f"\0row {self.row}")

    @property
    def error(self) -> str | None:
        """Why there is nothing to ask or nothing to judge by."""
        if self.problem is None:
            return f"null_problem: row {self.row}"
        return f"null_answer: row {self.row}" if self.answer is None else None


def hash_problem(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def load_problems(config: RunConfig, split: Split) -> list[Problem]:
    """Problems of one split. Raises `UserError` for a source that is missing, empty, broken or holds duplicates."""
    problems = list(iter_problems(config, split))
    _check_unique(lambda: problems, _source(config, split))
    if split == "warmup" and not problems:
        source = config.problems.train
        raise UserError(f"warmup needs worked solutions: set problems.solution_field to a field of {source!r}")
    return problems


def iter_problems(config: RunConfig, split: Split) -> Iterator[Problem]:
    """Problems of one split as they are read, of a source of any size. Raises `UserError` where it is broken."""
    section, source = config.problems, _source(config, split)
    if source == "arithmetic":
        yield from _arithmetic(config, split)
        return
    count = {"train": section.num_train, "test": section.num_test, "warmup": config.warmup.num_problems}[split]
    problems = (_problem(row, number, section, source) for number, row in enumerate(read_rows(source), start=1))
    if split == "warmup":
        problems = (problem for problem in problems if problem.problem and problem.solution)
    yield from islice(problems, count)


def check_problems(config: RunConfig) -> None:
    """Read through what is trained on and what is tested on, 8 bytes kept a problem.

    Raises `UserError` for a source that is missing, empty, broken or holds duplicates, and for a problem in both.
    """
    train, test = (
        _check_unique(partial(iter_problems, config, split), _source(config, split)) for split in ("train", "test")
    )
    if both := set(np.intersect1d(train, test, assume_unique=True).tolist()):
        first = next(each for each in iter_problems(config, "test") if each.problem and _hash(each) in both)
        raise UserError(f"{len(both)} test problems are training problems too, the first is {_short(first.problem)}")


def _source(config: RunConfig, split: Split) -> str:
    return config.problems.test if split == "test" else config.problems.train


def read_rows(source: str) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl or .parquet file or of `hf:owner/name:split`, at least one."""
    if source.startswith("hf:"):
        rows = _hub_rows(source)
    elif source.endswith((".jsonl", ".parquet")):
        path = location(source) if is_remote(source) else Path(source)
        if not path.is_file():
            raise UserError(f"file {source!r} does not exist")
        rows = _json_rows(path) if path.suffix == ".jsonl" else parquet_rows(path)
    else:
        raise UserError(f"source {source!r} must be a .jsonl or .parquet file, hf:owner/name:split or arithmetic")
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{source!r} holds no rows")


def require_fields(row: dict[str, Any], fields: Iterable[str], where: str) -> None:
    """Raises `UserError` naming the first field that is missing, and those there are."""
    for field in fields:
        if field not in row:
            raise UserError(f"{where} has no field {field!r}; it has {', '.join(sorted(row)) or 'none'}")


def _arithmetic(config: RunConfig, split: Split) -> list[Problem]:
    """Test and train are cut one after the other from one stream of different problems, so they cannot overlap.

    Test comes first: it stays the same when there is more or less to train on. The warm-up has a stream of its own,
    without any problem of the other two.
    """
    from prm_ray.arithmetic import DEFAULT_NUM_TEST, DEFAULT_NUM_TRAIN, make_problems

    section, seed = config.arithmetic, config.run.seed
    num_test = config.problems.num_test or DEFAULT_NUM_TEST
    num_train = config.problems.num_train or DEFAULT_NUM_TRAIN
    asked = make_problems(num_test + num_train, f"{seed}", section)
    if split != "warmup":
        return asked[:num_test] if split == "test" else asked[num_test:]
    if section.warmup_operations:
        length = {"min_operations": section.warmup_operations, "max_operations": section.warmup_operations}
        section = section.model_copy(update=length)
    taken = frozenset(problem.problem for problem in asked if problem.problem is not None)
    return make_problems(config.warmup.num_problems, f"{seed} warmup", section, taken)


def _problem(row: dict[str, Any], number: int, section: ProblemsSection, source: str) -> Problem:
    fields = [section.problem_field, section.answer_field, *filter(None, [section.solution_field])]
    require_fields(row, fields, f"row {number} of {source!r}")
    problem, answer = row[section.problem_field], row[section.answer_field]
    solution = row[section.solution_field] if section.solution_field else None
    if answer is not None and section.answer_pattern:
        match = re.search(section.answer_pattern, str(answer))
        answer = match[1] if match and match.re.groups else match[0] if match else None
    return Problem(
        problem=None if problem is None or not str(problem).strip() else str(problem),
        answer=None if answer is None or not str(answer).strip() else str(answer).strip(),
        solution=None if solution is None else str(solution),
        row=number,
    )


def _check_unique(problems: Callable[[], Iterable[Problem]], source: str) -> np.ndarray:
    """Hashes of the problems, sorted. They are read again only to name the rows of one that is there twice."""
    hashes, counts = np.unique(
        np.fromiter((_hash(each) for each in problems() if each.problem is not None), np.uint64), return_counts=True
    )
    if twice := set(hashes[counts > 1].tolist()):
        first, second = islice(_same(problems(), twice), 2)
        raise UserError(
            f"{source!r} holds the same problem in rows {first.row} and {second.row}: {_short(first.problem)}"
        )
    return hashes


def _same(problems: Iterable[Problem], hashes: set[int]) -> Iterator[Problem]:
    """The problem that comes for the second time before all others, and the first time it came."""
    seen: dict[int, Problem] = {}
    for problem in problems:
        if problem.problem is not None and (key := _hash(problem)) in hashes:
            if key in seen:
                yield seen[key]
                yield problem
            seen[key] = problem


def _hash(problem: Problem) -> int:
    return int(problem.prompt_id, 16)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_row(line, number, path)
        except UnicodeDecodeError as error:
            raise UserError(f"{str(path)!r} is not UTF-8 text: {error}") from None


def _json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"line {number} of {str(path)!r} is not valid JSON: {error.msg} at column {error.colno}"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"line {number} of {str(path)!r} must be a JSON object, not {_short(line)}")
    return row


def _hub_rows(source: str) -> Iterator[dict[str, Any]]:
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+):([\w.\[\]:%-]+)", source)
    if not match:
        raise UserError(f"source {source!r} must have the form hf:owner/name:split")
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise UserError(f"source {source!r} needs the package datasets: pip install datasets") from None
    try:
        yield from load_dataset(match[1], split=match[2])
    except (ValueError, OSError) as error:  # unknown name or split, no network: all the user's to mend
        raise UserError(f"source {source!r} does not load: {str(error).splitlines()[0]}") from None


def _short(text: str | None) -> str:
    text = text or ""
    return repr(text if len(text) <= 80 else text[:77] + "...")
