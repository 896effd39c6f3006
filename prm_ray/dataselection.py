"""Which labelled responses are trained on: the settings of `[select]`, Arrow tables in, one Arrow table out.

Rows of the run itself come first, those of `select.mix` behind them. Left out are, one reason after the other:

1. rows: without a response or label; of a problem that is held out here; with other prompt tokens than an earlier row
   of the same problem; beyond `num_responses`; `drop_truncated`; too short or long (response, then prompt);
2. problems, by the rows still there: mean label outside `min_accuracy` .. `max_accuracy`; `ngram`;
3. problems, in an order drawn by the seed: beyond `problem_share` or `num_problems`, then beyond `mix_share`.

A problem that several runs have is one group and counts as the run's own. Nothing is drawn but that order, so every
worker that selects anew gets the same rows, and a smaller share is part of a larger one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prm_ray.errors import UserError
from prm_ray.settings import SelectSection
from prm_ray.tables import outcome_labels

NEEDED = (
    *("prompt_id", "problem", "prompt_tokens", "sample_index", "response_tokens", "finish_reason"),
    *("error", "correct", "soft_label"),
)
"""Columns that a selection is made by."""
RUN = "run"
"""Column of a selection: 0 = the run itself, 1 = the first run of `select.mix`, and so on."""
_WORD = re.compile(r"\w+|[^\w\s.,;:!?\"'\u2019]")


@dataclass(frozen=True)
class Selection:
    table: pa.Table
    """The rows that are kept, in the order they came in, with the column `RUN`."""
    rows_in: list[int]
    """Rows of each run."""
    left_out: dict[str, int]
    """Rows of all runs by what left them out: a setting's name, or why no setting could keep them."""

    @property
    def rows_out(self) -> list[int]:
        runs = self.table[RUN].to_pylist()
        return [runs.count(number) for number in range(len(self.rows_in))]

    @property
    def num_problems(self) -> int:
        return pc.count_distinct(self.table["prompt_id"]).as_py()


def select(
    runs: Sequence[pa.Table], held_out: Mapping[str, str | None], section: SelectSection, seed: int
) -> Selection:
    """`runs` are training rows with the columns `NEEDED`, of the run itself and of each of `section.mix`.

    `held_out` is prompt_id -> text of the problems that the run is tested on. Raises `UserError`, naming the setting,
    if none of the run's own rows is left.
    """
    numbered = [
        run.append_column(RUN, pa.array([number] * run.num_rows, pa.int16())) for number, run in enumerate(runs)
    ]
    table = pa.concat_tables(numbered, promote_options="default")
    sieve = _Sieve(_facts(table))
    _leave_out_unusable(sieve, held_out)
    _leave_out_responses(sieve, section)
    _leave_out_problems(sieve, held_out, section)
    _take_shares(sieve, section, seed)
    is_kept = pc.is_in(pa.array(range(table.num_rows)), value_set=sieve.rows["row"])
    return Selection(table.filter(is_kept), [run.num_rows for run in runs], sieve.left_out)


def ngrams(problem: str, size: int) -> set[str]:
    """All runs of `size` words, lower-cased; of a shorter problem all its words.

    A word is a run of letters and digits, or a sign such as + or ( by itself; punctuation of prose does not count.
    """
    words = _WORD.findall(problem.lower())
    starts = range(max(1, len(words) - size + 1)) if words else ()
    return {" ".join(words[start : start + size]) for start in starts}


class _Sieve:
    """Rows that are left, without their tokens, and how many each reason has taken."""

    def __init__(self, rows: pa.Table):
        self.rows = rows
        self.left_out: dict[str, int] = {}

    def keep(self, is_kept: Any, reason: str, words: str) -> None:
        """Leave out the rows where the mask is false; `words` names the reason to a user.

        Raises `UserError` if they are the last of the run itself.
        """
        kept = self.rows.filter(pc.fill_null(is_kept, False))
        num_left_out = self.rows.num_rows - kept.num_rows
        own, own_before = (pc.sum(pc.equal(rows[RUN], 0)).as_py() or 0 for rows in (kept, self.rows))
        if num_left_out and not own and own_before:
            before = ", ".join(f"{count} {name}" for name, count in self.left_out.items()) or "none"
            raise UserError(
                f"nothing is left to train on: {words} leaves out the last {own_before} training responses "
                f"(left out before: {before})"
            )
        if num_left_out:
            self.left_out[reason] = num_left_out
        self.rows = kept

    def keep_problems(self, prompt_ids: Iterable[str], reason: str, words: str) -> None:
        self.keep(pc.is_in(self.rows["prompt_id"], value_set=pa.array(list(prompt_ids), pa.string())), reason, words)

    def problems(self) -> dict[str, str | None]:
        """prompt_id -> text of each problem, in the order of their first rows."""
        return dict(zip(self.rows["prompt_id"].to_pylist(), self.rows["problem"].to_pylist(), strict=True))


def _facts(table: pa.Table) -> pa.Table:
    """What is asked of a row, and its number in `table`."""
    facts = table.select(["prompt_id", "problem", "sample_index", "finish_reason", "error", RUN])
    return (
        facts.append_column("row", pa.array(range(table.num_rows)))
        .append_column("label", outcome_labels(table))
        .append_column("num_prompt_tokens", pc.list_value_length(table["prompt_tokens"]))
        .append_column("num_response_tokens", pc.list_value_length(table["response_tokens"]))
        .append_column("is_same_prompt", pa.array(_same_prompts(table), pa.bool_()))
    )


def _same_prompts(table: pa.Table) -> list[bool]:
    """Whether a row's prompt has the tokens that the first row of its problem has."""
    if not pc.any(pc.greater(table[RUN], 0)).as_py():
        return [True] * table.num_rows
    first: dict[str, Any] = {}
    same = []
    for prompt_id, tokens in zip(table["prompt_id"].to_pylist(), table["prompt_tokens"], strict=True):
        same.append(not tokens.is_valid or first.setdefault(prompt_id, tokens) == tokens)
    return same


def _leave_out_unusable(sieve: _Sieve, held_out: Collection[str]) -> None:
    sieve.keep(pc.is_null(sieve.rows["error"]), "failed", "an error")
    sieve.keep(pc.is_valid(sieve.rows["label"]), "unjudged", "a missing label")
    is_held_out = pc.is_in(sieve.rows["prompt_id"], value_set=pa.array(list(held_out), pa.string()))
    sieve.keep(pc.invert(is_held_out), "held_out", "being held out")
    sieve.keep(sieve.rows["is_same_prompt"], "other_prompt", "another prompt")


def _leave_out_responses(sieve: _Sieve, section: SelectSection) -> None:
    if section.num_responses is not None:
        sieve.keep(pc.less(sieve.rows["sample_index"], section.num_responses), *_setting(section, "num_responses"))
    if section.drop_truncated:
        is_cut = pc.equal(pc.fill_null(sieve.rows["finish_reason"], ""), "length")
        sieve.keep(pc.invert(is_cut), *_setting(section, "drop_truncated"))
    for column, name, compare in (
        ("num_response_tokens", "min_response_tokens", pc.greater_equal),
        ("num_response_tokens", "max_response_tokens", pc.less_equal),
        ("num_prompt_tokens", "max_prompt_tokens", pc.less_equal),
    ):
        if (bound := getattr(section, name)) is not None:
            sieve.keep(compare(sieve.rows[column], bound), *_setting(section, name))


def _leave_out_problems(sieve: _Sieve, held_out: Mapping[str, str | None], section: SelectSection) -> None:
    means = sieve.rows.group_by("prompt_id", use_threads=False).aggregate([("label", "mean")])
    for name, compare in (("min_accuracy", pc.greater_equal), ("max_accuracy", pc.less_equal)):
        inside = means.filter(compare(means["label_mean"], getattr(section, name)))
        sieve.keep_problems(inside["prompt_id"].to_pylist(), *_setting(section, name))
    if section.ngram is not None:
        known = {gram for text in held_out.values() if text for gram in ngrams(text, section.ngram)}
        _, words = _setting(section, "ngram")
        apart = [key for key, text in sieve.problems().items() if not known & ngrams(text or "", section.ngram)]
        sieve.keep_problems(apart, "ngram_held_out", words)
        sieve.keep_problems(_without_repeats(sieve.problems(), section.ngram), "ngram_training", words)


def _without_repeats(problems: Mapping[str, str | None], size: int) -> list[str]:
    """The problems that share no n-gram with one kept before them."""
    known: set[str] = set()
    kept = []
    for key, text in problems.items():
        grams = ngrams(text or "", size)
        if not known & grams:
            kept.append(key)
            known |= grams
    return kept


def _take_shares(sieve: _Sieve, section: SelectSection, seed: int) -> None:
    own = set(sieve.rows.filter(pc.equal(sieve.rows[RUN], 0))["prompt_id"].to_pylist())
    by_share = max(1, round(section.problem_share * len(own)))
    chosen = _drawn(own, by_share if section.num_problems is None else section.num_problems, seed)
    added = sieve.problems().keys() - own
    name = "problem_share" if section.num_problems is None else "num_problems"
    sieve.keep_problems([*chosen, *added], *_setting(section, name))
    if section.mix_share is not None:
        some = _drawn(added, round(section.mix_share * len(chosen)), seed)
        sieve.keep_problems([*chosen, *some], *_setting(section, "mix_share"))


def _drawn(prompt_ids: Iterable[str], count: int, seed: int) -> list[str]:
    """The first `count` in an order that does not depend on which others are there."""
    return sorted(prompt_ids, key=lambda key: hashlib.blake2b(f"{seed} {key}".encode()).digest())[:count]


def _setting(section: SelectSection, name: str) -> tuple[str, str]:
    """A setting as a reason, and as the user knows it."""
    return name, f"select.{name} = {getattr(section, name)}"
