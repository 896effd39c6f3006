"""search: best-of-N, beam and tree search over the held-out problems, generating and scoring at the same time.

In: the held-out problems of reference/, checkpoint/ (or `score.model`). Out: search/, a row a candidate with its
rewards, report.json, report.html with its pictures, and a line an arm on stdout. Engines and reward models are two
pools of actors (see `search/driver.py`); a problem that is searched is written within seconds and never searched again.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

from prm_ray.answers import Judge
from prm_ray.config import RunConfig
from prm_ray.errors import EngineError, UserError
from prm_ray.finalanswers import vote_answer
from prm_ray.models import base_model
from prm_ray.runlog import Progress, log
from prm_ray.scoring.served import ServedModel, own_model, reads_tokens_of
from prm_ray.search.balancing import balance
from prm_ray.search.driver import Driver, Generators, Scorers
from prm_ray.search.gathering import Gathering
from prm_ray.search.pool import Pool, WorkerDiedError
from prm_ray.search.strategies import REJECTING
from prm_ray.settings import SearchSection
from prm_ray.stages.cluster import check_room
from prm_ray.stages.heldout import held_out_problems
from prm_ray.stages.result import StageResult
from prm_ray.stages.sampling import SamplerOptions, sampler_options
from prm_ray.stages.searching.calibration import check_calibration, reject_threshold
from prm_ray.stages.searching.report import text, write_report
from prm_ray.stages.searching.table import SearchTable
from prm_ray.stages.searching.units import Pending, check_budget, make_units, pending_searches
from prm_ray.stages.searching.workers import generator_maker, scorer_maker, wanted_workers
from prm_ray.tables import StageFolder, in_words

_BATCHES_AHEAD = 2
"""Batches of tokens that a scorer holds: the next one is ready when a pass ends."""

_GATHERED_TOKENS = 4096
_GATHERED_SECONDS = 5.0
"""What a scorer on a CPU gathers while others wait for a generator, so that nothing comes later for it: each of its
passes takes the cores from the generators. One on a GPU of its own takes each response at once."""


def check(config: RunConfig) -> None:
    """Raises `UserError` for what cannot be searched, before Ray starts."""
    held_out_problems(config, config.search.num_problems)
    own_model(config)
    search_options(config, base_model(config))
    check_budget(config)
    check_calibration(config)
    Judge(config.label).close()


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section = config.search
    check_room(*wanted_workers(section))
    model = base_model(config)
    options = search_options(config, model)
    table = SearchTable(folder, section.problems_per_part)
    pending = pending_searches(config, options, table)
    total = len(pending) + len(table.done)
    if table.done:
        log.info("search: %d searches of %d are already there", len(table.done), total)
    with Judge(config.label) as judge, Progress("search", total, "problem", done=len(table.done)) as progress:
        table.note_usage(asyncio.run(_search(config, options, pending, table.writing(judge, progress))))
    report = write_report(config, folder)
    print(f"{text(report)}\nreport: {folder.path / 'report.html'}", flush=True)
    counted = table.count()
    if not counted.num_scored:
        raise UserError(
            f"no candidate of {counted.rows} has a reward ({in_words(counted.failed)}): the column error of search/ "
            "says more; mend it and search again with --fresh search"
        )
    return StageResult(total, counted.rows, counted.failed, counted.tokens, {"backend": options.backend})


async def _search(
    config: RunConfig,
    options: SamplerOptions,
    pending: list[Pending],
    writing: AbstractAsyncContextManager[SearchTable],
) -> dict[str, Any]:
    """Search all that is pending; returns how busy the pools were."""
    async with writing as table:
        if not pending:
            return {}
        generators, scorers = make_pools(config, options)
        balancing = asyncio.create_task(balance(generators, scorers, config.search.balance_seconds))
        try:
            await start_pools(generators, scorers, config.search)
            threshold = await _threshold(config, scorers, table.folder)
            waiting = max_waiting(config.search)
            find_answer = partial(vote_answer, judge=config.label.judge, pattern=config.label.answer_pattern)
            units = make_units(config, pending, table, waiting, threshold)
            await Driver(generators, scorers, waiting, find_answer).run(units, table.take)
        except WorkerDiedError as error:
            raise EngineError(
                f"no generator, or no scorer, of search starts any more: {error}; what is finished is kept, and the "
                "same command goes on from there"
            ) from None
        finally:
            balancing.cancel()
            await asyncio.gather(generators.close(), scorers.close())
        start = min(generators.usage.start, scorers.usage.start)  # one pool is up before the other
        return {pool.name: usage_of(pool, start) for pool in (generators, scorers)}


async def start_pools(generators: Generators, scorers: Scorers, section: SearchSection) -> None:
    """Those that share GPUs start one after the other, all before any works, and the larger parts first: the small ones
    fit beside them.

    What others take of a GPU while vLLM starts there it counts as its own: it has so much less for its cache, for good.
    """
    if not _is_part(section.gpus_per_generator):
        await asyncio.gather(generators.start(), scorers.start())
        return
    shares: list[tuple[float, Generators | Scorers]] = [
        (section.gpus_per_generator, generators),
        (section.gpus_per_scorer, scorers),
    ]
    for share, pool in sorted(shares, key=itemgetter(0), reverse=True):
        await pool.start(in_turn=_is_part(share))


def _is_part(gpus: float) -> bool:
    return 0 < gpus < 1


async def _threshold(config: RunConfig, scorers: Scorers, folder: StageFolder) -> float:
    if not set(REJECTING) & set(config.search.strategies):
        return -math.inf
    return await reject_threshold(config, scorers, folder, aggregation_of(config, served_model(config)))


def aggregation_of(config: RunConfig, model: ServedModel) -> str:
    return config.search.aggregation or model.facts.aggregation


def make_pools(config: RunConfig, options: SamplerOptions) -> tuple[Generators, Scorers]:
    section, model = config.search, served_model(config)
    by_text = not reads_tokens_of(model, options.model)
    generators: Generators = Pool(
        "generators",
        generator_maker(config, options, model.facts.step_rule),
        section.num_generators,
        room=section.responses_per_generator,
        enough=section.responses_per_generator,
    )
    gathering = Gathering(
        min(_GATHERED_TOKENS, section.token_budget), _GATHERED_SECONDS, may_wait=lambda: generators.num_queued > 0
    )
    scorers: Scorers = Pool(
        "scorers",
        scorer_maker(config, model, aggregation_of(config, model), by_text),
        section.num_scorers,
        room=_BATCHES_AHEAD * section.token_budget,
        gathering=None if section.gpus_per_scorer else gathering,
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
    return math.ceil(section.gpus_per_generator)


def max_waiting(section: SearchSection) -> int:
    return section.num_generators * section.responses_per_generator


def usage_of(pool: Pool[Any, Any], start: float) -> dict[str, Any]:
    """`over_time`: seconds since `start`, share of the workers that was busy, requests that waited."""
    later = pool.usage.start - start
    over_time = [
        (round(at.seconds + later, 3), round(at.busy, 4), round(at.queued, 2)) for at in pool.usage.over_time()
    ]
    return {"busy": pool.usage.busy, "deaths": pool.num_deaths, "workers": pool.num_workers, "over_time": over_time}
