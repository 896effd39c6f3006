"""search: best-of-N, beam and tree search over the held-out problems, generating and scoring at the same time.

In: the held-out problems of reference/, checkpoint/ (or `score.model`). Out: search/, a row a candidate with its
rewards, report.json, report.html and two lines on stdout. Engines and reward models are two pools of actors (see
`search/driver.py`); a problem that is searched is written within seconds and never searched again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from prm_ray.answers import Judge, exact_answer
from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import base_model_path, load_tokenizer
from prm_ray.problems import hash_problem
from prm_ray.runlog import Progress, log
from prm_ray.scoring.served import ServedModel, own_model, reads_tokens_of
from prm_ray.search.balancing import balance
from prm_ray.search.driver import Driver, Generators, Scorers, Unit
from prm_ray.search.plan import Plan
from prm_ray.search.pool import Pool
from prm_ray.settings import SearchSection
from prm_ray.stages.cluster import check_room
from prm_ray.stages.generate import prompt_row
from prm_ray.stages.heldout import held_out_problems
from prm_ray.stages.result import StageResult
from prm_ray.stages.sampling import SamplerOptions, sampler_options
from prm_ray.stages.searchreport import make_report, text, write_report
from prm_ray.stages.searchtable import SearchTable
from prm_ray.stages.searchworkers import generator_maker, scorer_maker
from prm_ray.tables import StageFolder

_BATCHES_AHEAD = 2
"""Batches of tokens that a scorer holds: the next one is ready when a pass ends."""


def check(config: RunConfig) -> None:
    """Raises `UserError` for what cannot be searched, before Ray starts."""
    held_out_problems(config, config.search.num_problems)
    own_model(config)
    search_options(config, base_model_path(config))
    Judge(config.label).close()


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section = config.search
    check_room("a generator of search", 1, section.gpus_per_generator)
    check_room("a scorer of search", 1, section.gpus_per_scorer)
    model = base_model_path(config)
    options = search_options(config, model)
    table = SearchTable(folder, section.problems_per_part)
    units = list(open_units(config, options, table))
    total = len(units) + len(table.done)
    log.info("search: %d searches of %d are already there", len(table.done), total) if table.done else None
    with Judge(config.label) as judge, Progress("search", total, "problem", done=len(table.done)) as progress:
        usage = asyncio.run(_search(config, options, units, table, judge, progress)) if units else {}
    table.note_usage(usage)
    report = make_report(config, folder)
    write_report(report, folder.path)
    print(f"{text(report)}\nreport: {folder.path / 'report.html'}", flush=True)
    counted = table.count()
    if not counted.num_scored:
        raise UserError(f"no candidate of {counted.rows} has a reward ({counted.failed}): see the column error")
    return StageResult(total, counted.rows, counted.failed, counted.tokens, {"backend": options.backend})


async def _search(
    config: RunConfig,
    options: SamplerOptions,
    units: list[Unit],
    table: SearchTable,
    judge: Judge,
    progress: Progress,
) -> dict[str, Any]:
    """Search all units; returns how busy the pools were."""
    section = config.search
    generators, scorers = make_pools(config, options)
    find_answer = partial(exact_answer, gold=None, pattern=config.label.answer_pattern)
    driver = Driver(generators, scorers, max_waiting(section), find_answer)
    balancing = asyncio.create_task(balance(generators, scorers, section.balance_seconds))
    try:
        await asyncio.gather(generators.start(), scorers.start())
        async with table.writing(judge, progress):
            await driver.run(units, table.take)
    finally:
        balancing.cancel()
        await asyncio.gather(generators.close(), scorers.close())
    return {pool.name: usage_of(pool) for pool in (generators, scorers)}


def make_pools(config: RunConfig, options: SamplerOptions) -> tuple[Generators, Scorers]:
    section, model = config.search, served_model(config)
    aggregation = section.aggregation or model.facts.aggregation
    threads = max(1, len(os.sched_getaffinity(0)) // section.num_scorers)
    generators: Generators = Pool(
        "generators",
        generator_maker(config, options, model.facts.step_rule),
        section.num_generators,
        room=section.responses_per_generator,
        enough=section.responses_per_generator,
    )
    scorers: Scorers = Pool(
        "scorers",
        scorer_maker(config, model, aggregation, not reads_tokens_of(model, options.model), threads),
        section.num_scorers,
        room=_BATCHES_AHEAD * section.token_budget,
    )
    return generators, scorers


def served_model(config: RunConfig) -> ServedModel:
    """The run's own model, as search holds it."""
    section = config.search
    return replace(own_model(config), token_budget=section.token_budget, cache_tokens=section.cache_tokens)


def search_options(config: RunConfig, model: str) -> SamplerOptions:
    """As `generate` samples, but one response a request: who needs several asks several times, and gets each as it
    ends."""
    section = config.generate.model_copy(
        update={"num_samples": 1, "num_engines": config.search.num_generators, "gpus_per_engine": _gpus(config.search)}
    )
    if section.temperature == 0:
        raise UserError("generate.temperature 0 makes all responses equal: search needs one above 0")
    return sampler_options(config.model_copy(update={"generate": section}), model)


def _gpus(section: SearchSection) -> int:
    return -int(-section.gpus_per_generator // 1)


def max_waiting(section: SearchSection) -> int:
    return section.num_generators * section.responses_per_generator


def open_units(config: RunConfig, options: SamplerOptions, table: SearchTable) -> Iterable[Unit]:
    """What is still to be searched; a problem that cannot be asked goes into the table with its reason."""
    section = config.search
    tokenizer = load_tokenizer(options.model, config.prompt.chat_template, config.model.trust_remote_code)
    for problem in held_out_problems(config, section.num_problems):
        row = prompt_row(config, tokenizer, options, "test", problem)
        table.add_problem(row)
        for strategy, size in section.arms:
            if (row["prompt_id"], strategy, size) in table.done:
                continue
            if row["error"] is not None:
                table.add_failure(row["prompt_id"], strategy, size, row["error"])
                continue
            plan = Plan(size, section.expand, section.lookahead, section.resample_temperature, section.exploration)
            seed = int(hash_problem(f"{config.run.seed} search {strategy} {size} {row['prompt_id']}"), 16) % 2**31
            yield Unit(row["prompt_id"], tuple(row["prompt_tokens"]), row["problem"], strategy, plan, seed)


def usage_of(pool: Pool[Any, Any]) -> dict[str, Any]:
    over_time = [(at.seconds, round(at.busy, 4), round(at.queued, 2)) for at in pool.usage.over_time()]
    return {"busy": pool.usage.busy, "deaths": pool.num_deaths, "workers": pool.num_workers, "over_time": over_time}
