"""What becomes of requests while replicas die, and while five times as many arrive as can be answered.

    python -m benchmarks.serving_faults --seconds-between 20 --requests 500

Replicas are killed with SIGKILL, in turn those with the model and the one that speaks HTTP. Every reward that comes is
compared with the Scorer's own. In the second part nobody asks again: what cannot be queued is turned away at once.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import common, fresh
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from benchmarks.serving import make_run
from benchmarks.serving_load import Call, closed_loop, open_loop
from prm_ray.client import AsyncClient, ServerError
from prm_ray.config import RunConfig, parse_config
from prm_ray.serve.manifest import APP_NAME

_TOLERANCE = 1e-3
"""Of a response's reward in float32, whose batches differ from one time to the next."""
_ASKED_BEFORE = 200
_MOST_REQUESTS = 20_000
"""Each of another problem, so that the prefix cache has no more of one than of the other."""
PARTS = ("kills", "overload")
_AT_ONCE = 8
_TRIES = 12
_ANSWERS = 40
"""Between two kills."""

Asked = tuple[str, list[str]]
"""A problem and responses to it."""


def kills(config: RunConfig, asked: Sequence[Asked], expected: Sequence[Sequence[float]], between: float) -> Figures:
    """Counts of what clients with retries saw while one replica after the other was killed, `between` seconds apart.

    Nothing is killed before something was answered since the last time: on a slow machine a replica that is killed as
    soon as it starts would never answer.
    """
    from prm_ray.serve import server

    url = server.start(config)
    seen: Counter[str] = Counter(right=0, wrong=0, zero=0, failed=0)
    try:
        with _killing(between, lambda: seen.total() - seen["zero"]) as killed:
            figures = asyncio.run(_ask_all(url, asked, expected, seen))
    finally:
        server.stop()
    return figures | {"killed": len(killed)}


async def _ask_all(
    url: str, asked: Sequence[Asked], expected: Sequence[Sequence[float]], seen: Counter[str]
) -> Figures:
    waiting = iter(zip(asked, expected, strict=True))
    statuses: Counter[str] = Counter()

    async def note(reply: httpx.Response) -> None:
        statuses[str(reply.status_code)] += 1

    async def work(client: AsyncClient) -> None:
        for (problem, responses), rewards in waiting:
            try:
                found = [each.rewards["sum"] for each in await client.rewards(problem, responses)]
            except ServerError as error:
                seen["failed"] += 1
                print(f"failed after {_TRIES} tries: {error}", flush=True)
                continue
            close = all(abs(one - other) < _TOLERANCE for one, other in zip(found, rewards, strict=True))
            seen["right" if close else "wrong"] += 1
            seen["zero"] += any(reward == 0 for reward in found)

    start = time.perf_counter()
    async with AsyncClient(url, max_tries=_TRIES) as client:
        client._http.event_hooks["response"].append(note)
        await asyncio.gather(*(work(client) for _ in range(_AT_ONCE)))
    return {**seen, "statuses": dict(statuses), "seconds": time.perf_counter() - start}


@contextmanager
def _killing(between: float, num_answered: Callable[[], int]) -> Iterator[list[int]]:
    """Kills a replica of this process's Serve every `between` seconds, those of models and the ingress in turn, if at
    least `_ANSWERS` came since the last one."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        answered = 0
        while not over.wait(between):
            kind = ("ScorerReplica0", "Ingress")[len(killed) % 2]
            if num_answered() >= answered + _ANSWERS and (found := replicas(kind)):
                found[0].kill()
                killed.append(found[0].pid)
                answered = num_answered()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def replicas(deployment: str = "") -> list[psutil.Process]:
    """Processes of this process's own Serve that hold replicas of that deployment (none = of all)."""
    title = f"ray::ServeReplica:{APP_NAME}:{deployment}"
    return [each for each in psutil.Process().children(recursive=True) if _title(each).startswith(title)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def overload(config: RunConfig, calls: Sequence[Call], times: float, seconds: float) -> Figures:
    """`times` as many requests a second as the server can answer, for so many seconds, or as long as `calls` last."""
    from prm_ray.serve import server

    url = server.start(config)
    try:
        unloaded = closed_loop(url, calls[:20], 1)
        full = closed_loop(url, calls[20:_ASKED_BEFORE], 16)
        rate = full["requests"] / full["seconds"]
        arrivals = calls[_ASKED_BEFORE:][: round(times * rate * seconds)]
        with _watching_memory(seconds / 6) as memory_mib:
            loaded = open_loop(url, arrivals, times * rate, allowed=(200, 429))
        tokens = _tokens_of(url, calls[0])
        per_second = tokens * loaded["statuses"]["200"] / loaded["seconds"]
        return {
            "unloaded": unloaded,
            "capacity_per_second": rate,
            "loaded": loaded,
            "memory_mib": memory_mib,
            "tokens_per_request": tokens,
            "queue_bound_seconds": (config.serve.max_queued_tokens + config.score.token_budget) / per_second,
        }
    finally:
        server.stop()


def _tokens_of(url: str, call: Call) -> int:
    path, body = call
    return httpx.post(url + path, json=body, timeout=60).raise_for_status().json()["usage"]["total_tokens"]


@contextmanager
def _watching_memory(between: float) -> Iterator[list[float]]:
    """What `_resident_mib` is now, and then every so many seconds."""
    seen, over = [_resident_mib()], threading.Event()

    def watch() -> None:
        while not over.wait(between):
            seen.append(_resident_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _resident_mib() -> float:
    """Of all replicas together."""
    return sum(each.memory_info().rss for each in replicas()) / 2**20


def run_kills(setting: Setting, folder: Path) -> Figures:
    from prm_ray.scorer import Scorer

    job = _job(folder)
    asked = [
        (f"{at} + 45 - 8", [f"{at} + 45 = {at + 45}\n{at + 37}", f"{at}", "5\n7\n9"]) for at in range(job["requests"])
    ]
    exact = replace(setting, dtype="float32")
    scorer = Scorer.from_pretrained(folder / "run" / "checkpoint", dtype=exact.dtype)
    expected = [[each.rewards["sum"] for each in scorer.score(*one)] for one in asked]
    return kills(_config(exact, folder, num_replicas=2), asked, expected, job["between"])


def run_overload(setting: Setting, folder: Path) -> Figures:
    job = _job(folder)
    calls: list[Call] = [
        ("/v1/rewards", {"problem": f"{at} + 45 - 8", "responses": [f"{at} + 45 = {at + 45}\n{at + 37}"] * 4})
        for at in range(_MOST_REQUESTS)
    ]
    found = overload(_config(setting, folder, max_queued_tokens=job["queue"]), calls, job["times"], job["overloaded"])
    return found | {"queue_tokens": job["queue"]}


def _config(setting: Setting, folder: Path, **serve: Any) -> RunConfig:
    from prm_ray.serve.server import free_port

    run: dict[str, Any] = {"run": {"dir": str(folder / "run")}, "model": {"dtype": setting.dtype}}
    run |= {"score": {"token_budget": setting.token_budget}}
    return parse_config(run | {"serve": {"port": free_port(), **serve}})


def _job(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "faults.json").read_text())


def show(found: dict[str, Figures]) -> None:
    if one := found.get("kills"):
        print(f"\n{one['killed']} replicas killed in {one['seconds']:.0f} s. Requests, with retries:")
        print(f"  {one['right']} right, {one['wrong']} wrong, {one['zero']} with a reward of 0, {one['failed']} failed")
        print(f"  replies by status: {one['statuses']}")
    if two := found.get("overload"):
        loaded, unloaded = two["loaded"], two["unloaded"]
        rate = loaded["requests"] / loaded["seconds"]
        print(f"\n{rate:.0f} requests a second, where {two['capacity_per_second']:.0f} can be answered:")
        print(f"  replies by status: {loaded['statuses']}")
        print(
            f"  answered: p50 {loaded['p50']:.2f} s, p99 {loaded['p99']:.2f} s (unloaded p99 {unloaded['p99']:.2f} s)"
        )
        print(f"  working off a full queue and a batch: {two['queue_bound_seconds']:.2f} s at the rate of that time")
        print(f"  memory of all replicas over the time: {', '.join(f'{each:.0f}' for each in two['memory_mib'])} MiB")


def main() -> None:
    parser = common.flags(__doc__, token_budget=2048)
    parser.add_argument("--requests", type=int, default=500, help="requests while replicas are killed")
    parser.add_argument("--seconds-between", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--times", type=float, default=5.0, help="arrivals, as a multiple of what can be answered")
    parser.add_argument("--overloaded", type=float, default=60.0, help="seconds of it")
    parser.add_argument("--queue", type=int, default=4096, help="serve.max_queued_tokens meanwhile")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    args = common.parse(parser)
    setting = common.setting_of(args)
    found: dict[str, Figures] = {}
    with fresh.shared_folder() as folder:
        make_run(setting, folder)
        job = {"requests": args.requests, "between": args.seconds_between, "times": args.times}
        (folder / "faults.json").write_text(json.dumps(job | {"overloaded": args.overloaded, "queue": args.queue}))
        for part in args.parts:
            found[part] = fresh.run_fresh(f"benchmarks.serving_faults:run_{part}", setting, folder)
            if "error" in found[part]:
                raise SystemExit(f"{part}: {found[part]['error']}")
    show(found)
    common.write(args, setting, found)


if __name__ == "__main__":
    main()
