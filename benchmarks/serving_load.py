"""Clients of a running server: so many at once, or requests that arrive by chance at a given rate."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.fresh import Figures

Call = tuple[str, dict[str, Any]]
"""A path and a body."""
Outcome = tuple[int, float]
"""HTTP status, seconds."""


def closed_loop(url: str, calls: Sequence[Call], num_clients: int) -> Figures:
    """All calls, each client asking again as soon as it has its answer. Raises for any answer but 200."""
    return asyncio.run(_closed(url, calls, num_clients))


def open_loop(url: str, calls: Sequence[Call], per_second: float, allowed: Sequence[int] = (200,)) -> Figures:
    """Calls at random moments, so many a second on average, whether those before are answered or not.

    Raises for a status that is not allowed; the times are of those with 200.
    """
    return asyncio.run(_open(url, calls, per_second, allowed))


async def _closed(url: str, calls: Sequence[Call], num_clients: int) -> Figures:
    waiting = iter(calls)
    outcomes: list[Outcome] = []

    async def client(http: httpx.AsyncClient) -> None:
        for call in waiting:
            outcomes.append(await _asked(http, call, (200,)))

    async with _http(url) as http:
        start = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(num_clients)))
        return _figures(outcomes, time.perf_counter() - start)


async def _open(url: str, calls: Sequence[Call], per_second: float, allowed: Sequence[int]) -> Figures:
    rng = random.Random(0)
    async with _http(url) as http:
        start = due = time.perf_counter()
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(_asked(http, call, allowed)))
            due += rng.expovariate(per_second)
            await asyncio.sleep(due - time.perf_counter())
        return _figures([await task for task in tasks], time.perf_counter() - start)


def _http(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


async def _asked(http: httpx.AsyncClient, call: Call, allowed: Sequence[int]) -> Outcome:
    start = time.perf_counter()
    path, body = call
    reply = await http.post(path, json=body)
    if reply.status_code not in allowed:
        raise RuntimeError(f"{path} answered {reply.status_code}: {reply.text[:200]}")
    return reply.status_code, time.perf_counter() - start


def _figures(outcomes: Sequence[Outcome], seconds: float) -> Figures:
    """Seconds: all, and the median and the 99th percentile of a good answer."""
    times = [each for status, each in outcomes if status == 200]
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    statuses = {str(status): count for status, count in Counter(status for status, _ in outcomes).items()}
    found = {"seconds": seconds, "requests": len(outcomes), "statuses": statuses}
    return found | ({"p50": cuts[49], "p99": cuts[98]} if times else {})
