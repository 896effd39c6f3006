"""OpenTelemetry: one span for each request, below the client's own, with what its time went to. Needs the extra `otel`.

Names of attributes are those of the semantic conventions where there is one, and begin with `prm_ray.` otherwise. No
attribute holds text of a prompt or a response.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from prm_ray.errors import UserError
from prm_ray.serve.requestlog import PROBES
from prm_ray.serve.requestrecord import UNKNOWN_ROUTE, Generation, RequestRecord, Scoring

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_INSTALL = "pip install 'prm-ray[otel]'"
_MAX_SCORINGS = 64
"""Questions to models that have spans: a search asks thousands, and what an exporter cannot hold is lost anyway."""


def wants_traces(endpoint: str | None, environment: Mapping[str, str] = os.environ) -> bool:
    """By the setting `serve.otlp_endpoint` or OpenTelemetry's own variables.

    Raises `UserError` for an exporter or a protocol that is not here, or if the packages are not installed.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER") or None
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    if endpoint is None and exporter is None and not any(environment.get(name) for name in _ENDPOINTS):
        return False
    if exporter not in (None, "otlp", "console"):
        raise UserError(f"OTEL_TRACES_EXPORTER is {exporter!r}; it must be otlp, console or none")
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((environment[name] for name in protocols if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise UserError(f"OTLP over {protocol!r} is not supported; OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf")
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise UserError(f"traces need OpenTelemetry's SDK and exporter ({error}): {_INSTALL}") from None
    return True


def make_traces(endpoint: str | None) -> Traces | None:
    """None if none are wanted. `endpoint` is a collector's base URL, such as `http://127.0.0.1:4318`."""
    if not wants_traces(endpoint):
        return None
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return Traces(ConsoleSpanExporter())
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Traces(OTLPSpanExporter(None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"))


class Traces:
    """Spans are sent in batches by a thread of their own; a collector that is away costs no request anything."""

    def __init__(self, exporter: SpanExporter):
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "prm_ray"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("prm_ray")

    def begin(self, record: RequestRecord, scope: MutableMapping[str, Any]) -> None:
        """Open the request's span, below the one that its `traceparent` header names."""
        if scope["path"] in PROBES:
            return
        from opentelemetry import propagate, trace

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        record.span = self._tracer.start_span(
            record.method,
            propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            start_time=_nanoseconds(record.start),
            attributes={
                "http.request.method": record.method,
                "url.path": record.path[:200],
                "url.scheme": scope.get("scheme", "http"),
            },
        )
        record.trace_id = trace.format_trace_id(record.span.get_span_context().trace_id)
        propagate.inject(record.trace_headers, trace.set_span_in_context(record.span))

    def end(self, record: RequestRecord) -> None:
        if (span := record.span) is None:
            return
        from opentelemetry import trace

        if span.is_recording():
            if record.route != UNKNOWN_ROUTE:
                span.update_name(f"{record.method} {record.route}")
            span.set_attributes(_known(_request_attributes(record)))
            if (record.status or 500) >= 500:
                span.set_status(trace.StatusCode.ERROR)
            below = trace.set_span_in_context(span)
            if record.generation is not None:
                self._add_generation(record.generation, below)
            for scoring in record.scorings[:_MAX_SCORINGS]:
                self._add_scoring(scoring, below)
        span.end(_nanoseconds(record.start + record.seconds))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _add_generation(self, generation: Generation, below: Context) -> None:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.response.model": generation.model or None,
            "gen_ai.usage.input_tokens": generation.prompt_tokens,
            "gen_ai.usage.output_tokens": generation.completion_tokens,
            "prm_ray.candidates": generation.num_candidates,
        }
        self._add("generate", generation.start, generation.end, below, attributes)

    def _add_scoring(self, scoring: Scoring, below: Context) -> None:
        attributes: dict[str, Any] = {"prm_ray.model": scoring.model, "prm_ray.candidates": scoring.num_responses}
        cost = scoring.cost
        if cost is None:
            self._add("score", scoring.start, scoring.end, below, attributes)
            return
        attributes |= {
            "prm_ray.prompt_tokens": cost.prompt_tokens,
            "prm_ray.response_tokens": cost.response_tokens,
            "prm_ray.failed_candidates": scoring.failures.total(),
            "prm_ray.replica": cost.replica,
        }
        inside = self._add("score", scoring.start, scoring.end, below, attributes)
        if cost.batches:
            began = cost.queued_at + cost.queued_seconds
            self._add("queue", cost.queued_at, began, inside, {})
            sizes = {
                "prm_ray.batches": len(cost.batches),
                "prm_ray.batch_jobs": max(batch.num_jobs for batch in cost.batches),
                "prm_ray.batch_tokens": max(batch.num_tokens for batch in cost.batches),
            }
            self._add("compute", began, began + cost.computed_seconds, inside, sizes)

    def _add(self, name: str, start: float, end: float, below: Context, attributes: Mapping[str, Any]) -> Context:
        from opentelemetry import trace

        span = self._tracer.start_span(name, below, start_time=_nanoseconds(start), attributes=_known(attributes))
        span.end(_nanoseconds(end))
        return trace.set_span_in_context(span, below)


def _request_attributes(record: RequestRecord) -> dict[str, Any]:
    return {
        "http.route": None if record.route == UNKNOWN_ROUTE else record.route,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "prm_ray.request_id": record.request_id,
        "prm_ray.key": record.key,
    }


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
