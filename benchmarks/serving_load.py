"""Clients of a running server: so many at once, or requests that arrive by chance at a given rate."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.fresh import Figures

Call = tuple[str, dict[str, Any]]
"""A path and a body."""


def closed_loop(url: str, calls: Sequence[Call], num_clients: int) -> Figures:
    """All calls, each client asking again as soon as it has its answer. Raises for any answer but 200."""
    return asyncio.run(_closed(url, calls, num_clients))


def open_loop(url: str, calls: Sequence[Call], per_second: float, seed: int = 0) -> Figures:
    """Calls at random moments, so many a second on average, whether those before are answered or not."""
    return asyncio.run(_open(url, calls, per_second, random.Random(seed)))


async def _closed(url: str, calls: Sequence[Call], num_clients: int) -> Figures:
    waiting = iter(calls)
    times: list[float] = []

    async def client(http: httpx.AsyncClient) -> None:
        for call in waiting:
            times.append(await _asked(http, call))

    async with _http(url) as http:
        start = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(num_clients)))
        return {"seconds": time.perf_counter() - start, "requests": len(times), **_percentiles(times)}


async def _open(url: str, calls: Sequence[Call], per_second: float, rng: random.Random) -> Figures:
    async with _http(url) as http:
        start = time.perf_counter()
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(_asked(http, call)))
            await asyncio.sleep(rng.expovariate(per_second))
        times = [await task for task in tasks]
        return {"seconds": time.perf_counter() - start, "requests": len(times), **_percentiles(times)}


def _http(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


async def _asked(http: httpx.AsyncClient, call: Call) -> float:
    start = time.perf_counter()
    path, body = call
    reply = await http.post(path, json=body)
    if reply.status_code != 200:
        raise RuntimeError(f"{path} answered {reply.status_code}: {reply.text[:200]}")
    return time.perf_counter() - start


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    """Seconds."""
    if len(times) < 2:
        return {"p50": times[0], "p99": times[0]}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
