"""How many workers each of two pools should have, by how much work each had."""

from __future__ import annotations

import asyncio
from typing import Any

from prm_ray.runlog import log
from prm_ray.search.pool import Pool


def ideal_first(total: int, first_work: float, second_work: float) -> int:
    """Workers of the first pool, of so many in all, when work is shared out as it came; each has at least one."""
    if first_work + second_work <= 0:
        return max(1, total // 2)
    return min(total - 1, max(1, round(total * first_work / (first_work + second_work))))


async def balance(first: Pool[Any, Any], second: Pool[Any, Any], seconds: float) -> None:
    """Every so many seconds let a worker of the pool that has too many become one of the other; ends when cancelled.

    Work is what the workers did since the last look, in seconds of one of them at full speed. A pool whose queue is
    empty was not held up, so none moves to it.
    """
    if not seconds:
        return
    before = first.usage.full_seconds, second.usage.full_seconds
    while True:
        await asyncio.sleep(seconds)
        now = first.usage.full_seconds, second.usage.full_seconds
        total = first.num_workers + second.num_workers
        wanted = ideal_first(total, now[0] - before[0], now[1] - before[1])
        if wanted > first.num_workers and first.num_queued:
            await _move(second, first)
        elif wanted < first.num_workers and second.num_queued:
            await _move(first, second)
        before = first.usage.full_seconds, second.usage.full_seconds


async def _move(source: Pool[Any, Any], target: Pool[Any, Any]) -> None:
    await source.remove()
    target.add()
    log.info("search: %d %s and %d %s now", target.num_workers, target.name, source.num_workers, source.name)
