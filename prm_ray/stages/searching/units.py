"""Which problems are still to be searched, by which strategies, and by what plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import load_tokenizer
from prm_ray.problems import hash_problem
from prm_ray.search.budget import TokenBudget
from prm_ray.search.driver import Unit
from prm_ray.search.plan import Adaptive, Plan
from prm_ray.search.strategies import ADAPTIVE
from prm_ray.stages.generate import prompt_row
from prm_ray.stages.heldout import held_out_problems
from prm_ray.stages.sampling import SamplerOptions
from prm_ray.stages.searching.table import SearchTable

Arm = tuple[str, int]
"""Strategy and size."""
_MOST_OPEN = 4096
"""Problems that wait for tokens of a budget; before there are so many, all have their first round."""


@dataclass(frozen=True)
class Pending:
    """A problem that is still to be searched by an arm."""

    row: dict[str, Any]
    """Its columns, as `prompt_row` makes them."""
    arm: Arm


def pending_searches(config: RunConfig, options: SamplerOptions, table: SearchTable) -> list[Pending]:
    """What the table lacks; a problem that cannot be asked goes into it with its reason."""
    tokenizer = load_tokenizer(options.model, config.prompt.chat_template, config.model.trust_remote_code)
    found = []
    for problem in held_out_problems(config, config.search.num_problems):
        row = prompt_row(config, tokenizer, options, "test", problem)
        table.add_problem(row)
        for strategy, size in config.search.arms:
            if (row["prompt_id"], strategy, size) in table.done:
                continue
            if row["error"] is None:
                found.append(Pending(row, (strategy, size)))
            else:
                table.add_failure(row["prompt_id"], strategy, size, row["error"])
    return found


def make_units(
    config: RunConfig, pending: Sequence[Pending], table: SearchTable, max_waiting: int, reject_below: float
) -> Iterator[Unit]:
    """One after the other: a large search has many. Problems of an arm share its plan, and so its budget."""
    counts = Counter(each.arm for each in pending)
    first = config.run.seed if config.search.seed is None else config.search.seed
    plans = {arm: _plan(config, arm, counts[arm], table, max_waiting, reject_below) for arm in counts}
    for each in pending:
        prompt_id, (strategy, size) = each.row["prompt_id"], each.arm
        seed = int(hash_problem(f"{first} search {strategy} {size} {prompt_id}"), 16) % 2**31
        prompt = tuple(each.row["prompt_tokens"])
        yield Unit(prompt_id, prompt, each.row["problem"], strategy, plans[each.arm], seed)


def check_budget(config: RunConfig) -> None:
    """Raises `UserError` for a budget that a single response may exceed."""
    tokens, longest = config.search.tokens_per_problem, config.generate.max_tokens
    if tokens is not None and tokens < longest:
        raise UserError(
            f"search.tokens_per_problem {tokens} is below one response, which may have {longest} tokens "
            "(generate.max_tokens): it must be at least that"
        )


def _plan(
    config: RunConfig, arm: Arm, num_problems: int, table: SearchTable, max_waiting: int, reject_below: float
) -> Plan:
    section, (strategy, size) = config.search, arm
    budget = None
    if strategy in ADAPTIVE and section.tokens_per_problem is not None:
        total = section.tokens_per_problem * (num_problems + table.num_done(strategy, size))
        left = max(num_problems, total - table.tokens_of(strategy, size))
        budget = TokenBudget(left, num_problems, size, at_once=max_waiting, open_at_once=_MOST_OPEN)
    return Plan(
        size,
        section.expand,
        section.lookahead,
        section.resample_temperature,
        section.exploration,
        section.descents,
        Adaptive(section.first, section.step, section.settle_error, section.pick),
        budget,
        reject_below,
    )
