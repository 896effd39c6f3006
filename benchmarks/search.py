"""Best-of-N with generating and scoring at the same time, beside each alone, and beside one after the other.

    python -m benchmarks.search configs/demo.toml --problems 64 --n 16

All ways answer the same problems of a finished run with its generator and its reward model. `lock-step` does what
search-and-learn does: batches of problems, N copies of each prompt as requests of their own, then all of a batch
through the reward model in padded rows, then the next batch. Times are from the moment that engines and models are up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import machine, print_table
from prm_ray.config import RunConfig, load_config
from prm_ray.core.packing import PromptGroup
from prm_ray.models import base_model
from prm_ray.stages.threads import Threads

Figures = dict[str, Any]
Prompt = tuple[int, ...]
_BATCH = 25
"""Problems of a lock-step batch: search-and-learn's recipes for best-of-N."""
_ROWS = 4
"""Rows of its padded batch."""


class Ways:
    """The problems, and each way to answer them."""

    def __init__(self, config: RunConfig, num_problems: int, n: int):
        from prm_ray.stages import search
        from prm_ray.stages.searching.table import SearchTable
        from prm_ray.stages.searching.units import make_units, pending_searches
        from prm_ray.tables import StageFolder

        section = {"num_problems": num_problems, "sizes": [n], "strategies": ["best_of_n"]}
        self.config = config.model_copy(update={"search": config.search.model_copy(update=section)})
        self.n = n
        self.options = search.search_options(self.config, base_model(self.config))
        table = SearchTable(StageFolder(config.run.dir / "none", "search"), 1)
        pending = pending_searches(self.config, self.options, table)
        self.units = list(make_units(self.config, pending, table, max_waiting=1, reject_below=-math.inf))

    def pipelined(self) -> Figures:
        from prm_ray.search.driver import Driver, Found
        from prm_ray.stages import search

        found: list[Found] = []

        async def take(one: Found) -> None:
            found.append(one)

        async def work() -> Figures:
            generators, scorers = search.make_pools(self.config, self.options)
            try:
                await search.start_pools(generators, scorers, self.config.search)
                start = time.monotonic()
                driver = Driver(generators, scorers, search.max_waiting(self.config.search))
                await driver.run(self.units, take)
                seconds = time.monotonic() - start
            finally:
                await asyncio.gather(generators.close(), scorers.close())
            begun = min(generators.usage.start, scorers.usage.start)
            usage = {pool.name: search.usage_of(pool, begun) for pool in (generators, scorers)}
            return {"seconds": seconds, "usage": usage}

        figures = asyncio.run(work())
        return figures | {"tokens": sum(len(one.tokens) for each in found for one in each.candidates)}

    def alone(self) -> tuple[Figures, Figures]:
        """Generating all candidates, then scoring exactly those."""
        generate, stop = self._engine()
        try:
            seconds, samples = _timed(lambda: generate([unit.prompt for unit in self.units for _ in range(self.n)]))
        finally:
            stop()
        scorer = self._scorer()
        grouped = [samples[start : start + self.n] for start in range(0, len(samples), self.n)]

        def score() -> None:
            groups = [
                scorer.prepare(list(unit.prompt), tokens) for unit, tokens in zip(self.units, grouped, strict=True)
            ]
            scorer.score_prepared(groups)

        scored, _ = _timed(score)
        tokens = sum(map(len, samples))
        return {"seconds": seconds, "tokens": tokens}, {"seconds": scored, "tokens": tokens}

    def lock_step(self) -> Figures:
        import torch

        from benchmarks.ways import padded

        generate, stop = self._engine()
        scorer, tokens, seconds = self._scorer(), 0, 0.0
        models = [model for model in (scorer.policy, scorer.reference) if model is not None]
        try:
            for start in range(0, len(self.units), _BATCH):
                prompts = [unit.prompt for unit in self.units[start : start + _BATCH] for _ in range(self.n)]

                def batch(prompts: list[Prompt] = prompts) -> list[list[int]]:
                    samples = generate(prompts)
                    rows = [PromptGroup(prompt, [one]) for prompt, one in zip(prompts, samples, strict=True)]
                    with torch.no_grad():
                        for model in models:
                            padded(model, rows, _ROWS)
                    return samples

                took, samples = _timed(batch)
                seconds, tokens = seconds + took, tokens + sum(map(len, samples))
        finally:
            stop()
        return {"seconds": seconds, "tokens": tokens}

    def _engine(self) -> tuple[Callable[[Sequence[Prompt]], list[list[int]]], Callable[[], None]]:
        """An engine as `search` starts it: prompts -> one sampled response each."""
        from prm_ray.stages.sampler import make_sampler

        loop = asyncio.new_event_loop()

        async def start() -> Any:
            return make_sampler(replace(self.options, threads=Threads(number=2)))

        sampler = loop.run_until_complete(start())

        def generate(prompts: Sequence[Prompt]) -> list[list[int]]:
            seeds = [random.getrandbits(31) for _ in prompts]
            samples = loop.run_until_complete(sampler.sample(prompts, seeds))
            return [sample.tokens for (sample,) in samples]

        def stop() -> None:
            sampler.close()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

        generate([self.units[0].prompt])
        return generate, stop

    def _scorer(self) -> Any:
        from prm_ray.scoring.served import load_scorer
        from prm_ray.stages.search import served_model

        scorer = load_scorer(served_model(self.config))
        scorer.score_prepared([scorer.prepare(list(self.units[0].prompt), [[1, 2, 3]])])
        return scorer


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def measure(config: RunConfig, num_problems: int, n: int, repeats: int) -> Figures:
    """All ways `repeats` times in turn, in one Ray; every other round in reverse order."""
    from prm_ray.stages.cluster import start_ray

    start_ray(config)
    ways = Ways(config, num_problems, n)
    runs: dict[str, list[Figures]] = {"pipelined": [], "generate": [], "score": [], "lock-step": []}

    def alone() -> None:
        for name, figures in zip(("generate", "score"), ways.alone(), strict=True):
            runs[name].append(figures)

    order: list[Callable[[], Any]] = [
        lambda: runs["pipelined"].append(ways.pipelined()),
        alone,
        lambda: runs["lock-step"].append(ways.lock_step()),
    ]
    for number in range(repeats):
        for way in order if number % 2 == 0 else reversed(order):
            way()
    return {"problems": len(ways.units), "n": n, "runs": runs} | ratios(runs)


def ratios(runs: dict[str, list[Figures]]) -> Figures:
    """Times by response token, since each way samples anew; a ratio is of one round, the median over rounds is shown.

    On shared cores nothing can overlap, so the bound is what both take alone.
    """

    def cost(way: str, number: int) -> float:
        return runs[way][number]["seconds"] / runs[way][number]["tokens"]

    rounds = range(len(runs["pipelined"]))
    return {
        "pipelined / (generate + score)": statistics.median(
            cost("pipelined", at) / (cost("generate", at) + cost("score", at)) for at in rounds
        ),
        "lock-step / pipelined": statistics.median(cost("lock-step", at) / cost("pipelined", at) for at in rounds),
    }


def show(results: Figures) -> None:
    rows = []
    for way, runs in results["runs"].items():
        seconds = statistics.median(run["seconds"] for run in runs)
        tokens = statistics.median(run["tokens"] for run in runs)
        rows.append([way, f"{seconds:.1f}", f"{tokens:,.0f}", f"{tokens / seconds:,.0f}"])
    title = f"best of {results['n']}, {results['problems']} problems"
    print_table(title, ["way", "seconds", "response tokens", "tokens/s"], rows)
    for name in ("pipelined / (generate + score)", "lock-step / pipelined"):
        print(f"{name}: {results[name]:.2f}")
    for pool, usage in results["runs"]["pipelined"][-1]["usage"].items():
        print(f"{pool}: busy {100 * usage['busy']:.0f} % of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", metavar="CONFIG", help="TOML file of a finished run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    args = parser.parse_intermixed_args()
    results = measure(load_config(args.config, args.overrides), args.problems, args.n, args.repeats)
    show(results)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
