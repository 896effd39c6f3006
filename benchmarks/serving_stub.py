"""The server around a model that takes a fixed time: what Serve and the application cost, and what replicas bring."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray import serve

from benchmarks.fresh import Figures
from benchmarks.serving_load import Call, closed_loop
from prm_ray.config import parse_config
from prm_ray.scoring.asks import Ask, Conversation, Cost, Item, ModelFacts, Options, Scored
from prm_ray.serve.app import IngressSettings, bind_ingress, scorer_deployment
from prm_ray.serve.manifest import APP_NAME
from prm_ray.serve.server import free_port
from prm_ray.stages.cluster import start_ray

_REQUESTS = 400
_AT_ONCE = 16


class Stub:
    """A replica that holds no model: one request after the other, so many seconds each."""

    def __init__(self, seconds: float):
        self._seconds, self._busy = seconds, asyncio.Lock()

    async def score(self, asks: Sequence[Ask | Conversation], options: Options) -> Scored:
        async with self._busy:
            await asyncio.sleep(self._seconds)
        item = Item(text="57", steps=["57"], step_ends=[1], step_rewards=[0.5], rewards={"sum": 0.5}, num_tokens=1)
        return Scored([[item] * len(ask.responses) for ask in asks], Cost())


def overhead(num_requests: int = _REQUESTS) -> Figures:
    """Seconds a request through proxy, ingress and replica where the replica does nothing: alone, and 16 at once."""
    with _server(1, 0.0) as url:
        calls = _calls(num_requests)
        closed_loop(url, calls[:20], 1)
        return {"alone": closed_loop(url, calls, 1), "at_once": closed_loop(url, calls, _AT_ONCE)}


def scaling(service_seconds: float = 0.05, num_requests: int = _REQUESTS) -> Figures:
    """Requests a second with one replica and with two."""
    figures: Figures = {}
    for num_replicas in (1, 2):
        with _server(num_replicas, service_seconds) as url:
            calls = _calls(num_requests)
            closed_loop(url, calls[:20], _AT_ONCE)
            figures[str(num_replicas)] = closed_loop(url, calls, _AT_ONCE)
    figures["ratio"] = figures["1"]["seconds"] / figures["2"]["seconds"]
    return figures


@contextmanager
def _server(num_replicas: int, seconds: float) -> Iterator[str]:
    config = parse_config({"serve": {"num_replicas": num_replicas, "port": free_port()}})
    section = config.serve
    start_ray(config)
    serve.start(http_options={"host": section.host, "port": section.port})
    facts = ModelFacts("stub", "log_ratio", True, "sum", "newline")
    stub = scorer_deployment(section, 0, Stub).bind(seconds)
    serve.run(bind_ingress(IngressSettings([facts], section), [stub]), name=APP_NAME, route_prefix="/")
    try:
        yield f"http://{section.host}:{section.port}"
    finally:
        serve.shutdown()


def _calls(number: int) -> list[Call]:
    return [("/v1/rewards", {"problem": f"12 + {at}", "responses": ["57"]}) for at in range(number)]
