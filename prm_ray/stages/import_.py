"""Responses and labels made elsewhere -> labels: reads a layout, keeps every text exactly, judges nothing.

Layouts (`import.preset`): `flat` has a row a response; `gsm8k_gpt3` a row a problem with a list `responses` of
{generator, text, correct}; `implicit_prm_rollouts` a row a problem with lists `completions` and `correctness` side by
side. `import.fields` renames: our name -> the file's. Token ids stay null, `reference` encodes the texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.finalanswers import exact_answer
from prm_ray.models import build_messages
from prm_ray.problems import hash_problem, read_rows, require_fields
from prm_ray.runlog import log
from prm_ray.settings import ImportSection
from prm_ray.stages.result import StageResult, count_parts
from prm_ray.stages.trainingrows import check_soft_labels
from prm_ray.tables import StageFolder

_TEST_SHARE = 0.1
_PROBLEMS_PER_PART = 64
_FIELDS = {
    "flat": {
        "problem": "problem",
        "gold_answer": "gold_answer",
        "text": "text",
        "correct": "correct",
        "generator": "generator",
        "split": "split",
    },
    "gsm8k_gpt3": {
        "problem": "problem",
        "gold_answer": "gold_answer",
        "responses": "responses",
        "text": "text",
        "correct": "correct",
        "generator": "generator",
        "split": "split",
    },
    "implicit_prm_rollouts": {
        "problem": "prompt",
        "gold_answer": "reference",
        "text": "completions",
        "steps": "steps",
        "correct": "correctness",
        "generator": "dataset",
        "split": "split",
    },
}
"""Preset -> our name -> the file's name."""
_OPTIONAL = {"gold_answer", "generator", "split", "steps"}


@dataclass(frozen=True)
class Response:
    """One response as the file has it; `correct` is whatever stands there, true or false or a chance of being right."""

    text: Any
    correct: Any
    generator: str | None


@dataclass
class Rollouts:
    """All responses to one problem."""

    problem: str
    gold_answer: str | None
    split: str | None
    responses: list[Response]


def check(config: RunConfig) -> None:
    """Raises `UserError` for a source that `run` could not read, or labels that `train` could not use."""
    problems = load_rollouts(config.import_)
    splits = assign_splits(problems, config.import_, config.run.seed)
    trained = (rollouts for rollouts in problems if splits.get(rollouts.problem) == "train")
    soft = (read_label(response.correct)[1] for rollouts in trained for response in rollouts.responses)
    check_soft_labels(config.train.objective, [label for label in soft if label is not None])
    for split, what in (("train", "train"), ("test", "score, rerank and evaluate")):
        if split not in splits.values():
            log.warning(
                "import: no problem of %r is in the split %s, so %s will have nothing to work on",
                *(config.import_.source, split, what),
            )


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    """Raises `UserError` for a source that is missing, empty, broken, or lacks a field of its layout."""
    assert config.import_.source is not None
    problems = load_rollouts(config.import_)
    splits = assign_splits(problems, config.import_, config.run.seed)
    kept = [rollouts for rollouts in problems if rollouts.problem in splits]
    finished = set(folder.finished_parts())
    for part, start in enumerate(range(0, len(kept), _PROBLEMS_PER_PART)):
        if part not in finished:
            chunk = kept[start : start + _PROBLEMS_PER_PART]
            folder.write_part(part, [row for one in chunk for row in make_rows(one, splits[one.problem], config)])
    counted = count_parts(folder, ("error", "label_error"))
    if len(kept) < len(problems):
        log.info("import: %d of %d problems taken, as num_train and num_test say", len(kept), len(problems))
    details = {"problems": len(kept), "problems_left_out": len(problems) - len(kept)}
    return StageResult(counted.rows_in, counted.rows_out, counted.failed, details=details)


def load_rollouts(section: ImportSection) -> list[Rollouts]:
    """Problems in the order of their first row, each with all its responses (`flat` rows are gathered)."""
    fields = _FIELDS[section.preset] | section.fields
    unknown = set(section.fields) - set(_FIELDS[section.preset])
    if unknown:
        known = ", ".join(_FIELDS[section.preset])
        raise UserError(f"import.fields: {', '.join(sorted(unknown))} is not a field of {section.preset!r} ({known})")
    assert section.source is not None
    problems: dict[str, Rollouts] = {}
    for number, row in enumerate(read_rows(section.source), start=1):
        where = f"row {number} of {section.source!r}"
        rollouts = _rollouts(row, fields, section, where)
        earlier = problems.setdefault(rollouts.problem, rollouts)
        if earlier is rollouts:
            continue
        if section.preset != "flat":
            raise UserError(f"{where} holds the same problem as an earlier row: {rollouts.problem[:80]!r}")
        if (earlier.split, earlier.gold_answer) != (rollouts.split, rollouts.gold_answer):
            raise UserError(f"{where} gives its problem another split or gold answer than an earlier row does")
        earlier.responses += rollouts.responses
    return list(problems.values())


def assign_splits(problems: list[Rollouts], section: ImportSection, seed: int) -> dict[str, str]:
    """Problem -> train | test: the file's own split, else a seeded shuffle cut in two; the rest is absent."""
    named = {rollouts.problem: rollouts.split for rollouts in problems}
    if any(split is not None for split in named.values()):
        wrong = next((split for split in named.values() if split not in ("train", "test")), "")
        if wrong != "":
            raise UserError(f"{section.source!r} has the split {wrong!r}; it must be train or test in every row")
        train = [problem for problem, split in named.items() if split == "train"][: section.num_train]
        test = [problem for problem, split in named.items() if split == "test"][: section.num_test]
    else:
        order = sorted(named)
        random.Random(f"import {seed}").shuffle(order)
        default = max(1, round(_TEST_SHARE * len(order)))
        num_test = section.num_test or (max(0, len(order) - section.num_train) if section.num_train else default)
        test, train = order[:num_test], order[num_test:][: section.num_train]
        asked = section.num_train or 1
        if len(test) < num_test or len(train) < asked:
            raise UserError(
                f"{section.source!r} holds {len(order)} problems, too few for "
                f"import.num_train {asked} and import.num_test {num_test}"
            )
    return dict.fromkeys(train, "train") | dict.fromkeys(test, "test")


def make_rows(rollouts: Rollouts, split: str, config: RunConfig) -> Iterator[dict[str, Any]]:
    """Rows of the `labels/` table; no text is an `error`, a label that says nothing a `label_error`."""
    shared = {
        "prompt_id": hash_problem(rollouts.problem),
        "split": split,
        "problem": rollouts.problem,
        "gold_answer": rollouts.gold_answer,
        "messages": build_messages(config.prompt, rollouts.problem),
    }
    if not rollouts.responses:
        yield shared | {"sample_index": 0, "error": "no_responses"}
    for index, response in enumerate(rollouts.responses):
        row = shared | {"sample_index": index, "generator": response.generator}
        if not isinstance(response.text, str) or not response.text:
            yield row | {"error": "no_text" if response.text is None else "empty_response"}
            continue
        correct, soft_label, label_error = read_label(response.correct)
        yield row | {
            "text": response.text,
            "answer": exact_answer(response.text, rollouts.gold_answer, config.label.answer_pattern),
            "correct": correct,
            "soft_label": soft_label,
            "label_error": label_error,
        }


def read_label(value: Any) -> tuple[bool | None, float | None, str | None]:
    """(correct, soft label, error) of a file's label: true or false, or a chance of being right.

    A chance of 1 or 0 is right or wrong, no soft label; any other is kept as it is and counts as right above 0.5.
    """
    if isinstance(value, bool):
        return value, None, None
    if isinstance(value, int | float) and 0 <= value <= 1:
        return value > 0.5, float(value) if 0 < value < 1 else None, None
    return None, None, f"bad_label: {value!r} is not true, false or a chance in [0, 1]"


def _rollouts(row: dict[str, Any], fields: dict[str, str], section: ImportSection, where: str) -> Rollouts:
    needed = [name for name in fields if name not in _OPTIONAL or name in section.fields]
    inner = ("text", "correct", "generator") if section.preset == "gsm8k_gpt3" else ()
    require_fields(row, [fields[name] for name in needed if name not in inner], where)
    problem = row[fields["problem"]]
    if not isinstance(problem, str) or not problem.strip():
        raise UserError(f"{where}: {fields['problem']} is {problem!r}; it must be the text of a problem")
    responses = _RESPONSES[section.preset](row, fields, where)
    gold = row.get(fields["gold_answer"])
    return Rollouts(problem, None if gold is None else str(gold), row.get(fields["split"]), responses)


def _flat(row: dict[str, Any], fields: dict[str, str], where: str) -> list[Response]:
    return [Response(row[fields["text"]], row[fields["correct"]], row.get(fields["generator"]))]


def _nested(row: dict[str, Any], fields: dict[str, str], where: str) -> list[Response]:
    responses = row[fields["responses"]]
    if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
        raise UserError(f"{where}: {fields['responses']} must be a list of objects")
    for response in responses:
        require_fields(response, [fields["text"]], f"a response in {where}")
    return [
        Response(one[fields["text"]], one.get(fields["correct"]), one.get(fields["generator"])) for one in responses
    ]


def _side_by_side(row: dict[str, Any], fields: dict[str, str], where: str) -> list[Response]:
    """A completion that is null is put together from its steps."""
    texts, labels = row[fields["text"]] or [], row[fields["correct"]] or []
    steps = row.get(fields["steps"]) or [None] * len(texts)
    if not len(texts) == len(labels) == len(steps):
        raise UserError(
            f"{where}: {len(texts)} {fields['text']}, {len(labels)} {fields['correct']}, {len(steps)} steps"
        )
    generator = row.get(fields["generator"])
    return [
        Response("\n\n".join(parts) if text is None and parts else text, label, generator)
        for text, label, parts in zip(texts, labels, steps, strict=True)
    ]


_RESPONSES = {"flat": _flat, "gsm8k_gpt3": _nested, "implicit_prm_rollouts": _side_by_side}
