"""The server's numbers for Prometheus, counted at the ingress from the records of requests.

Labels take few values: routes as declared, served models, names of keys, kinds of errors. A replica says with every
answer which batches it was part of, so each batch is counted once, however many requests it served.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from prm_ray.serve.requestrecord import RequestRecord, Scoring

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_FILLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_JOBS = (1, 2, 4, 8, 16, 32, 64, 128)
_QUEUE_KNOWN_SECONDS = 60
"""A replica that has not answered for so long has nothing in its queue, or is gone."""


_BATCHES_KEPT = 500
"""Numbers of counted batches that are remembered of a replica: its answers come nearly in order."""


class ServerMetrics:
    """Of one ingress, in a registry of its own: Ray's metrics of this process are not in it."""

    def __init__(self, models: Iterable[str]):
        disable_created_metrics()  # of the whole process: a second series for each, which no query here asks for
        self.registry = CollectorRegistry()
        self._queues: dict[tuple[str, str], tuple[int, float]] = {}
        self._batches: dict[str, set[int]] = {}
        self._make_http()
        self._make_scoring()
        self._models = list(models)
        for model in self._models:  # a series that begins at 0 has a rate from its first request on
            for kind in ("prompt", "response"):
                self._tokens.labels(model, kind)
            self._responses.labels(model)
            self._cache_hits.labels(model)
            self._queued.labels(model)

    def _make_http(self) -> None:
        self._in_progress = self._gauge("http_requests_in_progress", "HTTP requests that are being handled.")
        self._requests = self._counter("http_requests", "HTTP requests answered.", "route", "status", "model")
        self._http_seconds = self._histogram(
            "http_request_duration_seconds", "Whole HTTP request, to the end of the reply.", _SECONDS, "route"
        )
        self._errors = self._counter("errors", "Error replies, by the type in their body.", "route", "type")
        self._rejected = self._counter(
            "rejected_requests", "Requests without a valid key (no name), or above their key's rate.", "reason", "key"
        )

    def _make_scoring(self) -> None:
        self._stage_seconds = self._histogram(
            "stage_duration_seconds", "Of a request: queue, compute and generation.", _SECONDS, "stage", "model"
        )
        self._tokens = self._counter("scored_tokens", "Tokens of scored requests.", "model", "kind")
        self._responses = self._counter("scored_responses", "Responses that were to be scored.", "model")
        self._failures = self._counter("failed_responses", "Responses without a reward, by kind.", "model", "type")
        self._cache_hits = self._counter(
            "prefix_cache_hit_tokens", "Tokens that were not computed, because the prefix cache had them.", "model"
        )
        self._fill = self._histogram("batch_fill_ratio", "Tokens of a batch by its budget.", _FILLS, "model")
        self._jobs = self._histogram("batch_jobs", "Jobs that were merged into a batch.", _JOBS, "model")
        self._queued = self._gauge("queued_tokens", "Tokens that wait at the replicas, as they last said.", "model")
        self._ready = self._gauge("ready_replicas", "Replicas that can answer.", "model")
        self._generated = self._counter("generator_tokens", "Tokens of the gateway's generator.", "kind")

    def begin(self) -> None:
        self._in_progress.inc()

    def end(self, record: RequestRecord) -> None:
        self._in_progress.dec()
        self._requests.labels(record.route, str(record.status), record.model or "").inc()
        self._http_seconds.labels(record.route).observe(record.seconds)
        if record.error is not None:
            self._errors.labels(record.route, record.error).inc()
        if record.error in ("unauthorized", "rate_limited"):
            self._rejected.labels(record.error, record.key or "").inc()
        if (generation := record.generation) is not None:
            self._stage_seconds.labels("generation", "").observe(generation.end - generation.start)
            self._generated.labels("prompt").inc(generation.prompt_tokens)
            self._generated.labels("completion").inc(generation.completion_tokens)
        for scoring in record.scorings:
            self._count_scoring(scoring)

    def render(self, ready: Mapping[str, int] | None, accept: str) -> tuple[bytes, str]:
        """(the page, its content type). `ready`: model -> replicas that can answer; None if that is not known."""
        self._ready.clear()
        for model, count in (ready or {}).items():
            self._ready.labels(model).set(count)
        now = time.monotonic()
        self._queues = {name: last for name, last in self._queues.items() if now - last[1] < _QUEUE_KNOWN_SECONDS}
        for model in self._models:
            self._queued.labels(model).set(sum(last[0] for name, last in self._queues.items() if name[0] == model))
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _count_scoring(self, scoring: Scoring) -> None:
        cost, model = scoring.cost, scoring.model
        if cost is None:
            return
        self._responses.labels(model).inc(scoring.num_responses)
        for kind, count in scoring.failures.items():
            self._failures.labels(model, kind).inc(count)
        self._queues[model, cost.replica] = (cost.queued_tokens, time.monotonic())
        if not cost.batches:
            return
        self._tokens.labels(model, "prompt").inc(cost.prompt_tokens)
        self._tokens.labels(model, "response").inc(cost.response_tokens)
        self._stage_seconds.labels("queue", model).observe(cost.queued_seconds)
        self._stage_seconds.labels("compute", model).observe(cost.computed_seconds)
        for batch in cost.batches:
            if self._is_new(cost.replica, batch.number):
                self._fill.labels(model).observe(batch.num_tokens / batch.token_budget)
                self._jobs.labels(model).observe(batch.num_jobs)
                self._cache_hits.labels(model).inc(batch.cached_tokens)

    def _is_new(self, replica: str, batch: int) -> bool:
        counted = self._batches.setdefault(replica, set())
        if batch in counted:
            return False
        if len(counted) >= 2 * _BATCHES_KEPT:
            counted -= {number for number in counted if number < batch - _BATCHES_KEPT}
        counted.add(batch)
        return True

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"prm_ray_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"prm_ray_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"prm_ray_{name}", text, labels, registry=self.registry, buckets=buckets)
