"""Traces of the application as it is served, sent to a collector in this process as OTLP over HTTP."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from prm_ray.errors import UserError
from prm_ray.scorer import Scorer
from prm_ray.serve.tracing import Traces, wants_traces
from tests.serving import PROBES, TwoTexts, asked, post, tiny_scorer, watched

PROBLEM = "1 + 2 + 4"
CHAT = {"messages": [{"role": "user", "content": PROBLEM}], "best_of": 2}


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


class Collector(BaseHTTPRequestHandler):
    spans: list[Span]
    services: list[str]

    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in sent.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.append(f"{self.path} {names['service.name']}")
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[type[Collector], str]]:
    handler = type("Handler", (Collector,), {"spans": [], "services": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_collector_gets_a_span_for_each_stage_below_the_clients_own(
    scorer: Scorer, collector: tuple[type[Collector], str]
) -> None:
    seen, url = collector
    traces, generator = Traces(OTLPSpanExporter(f"{url}/v1/traces")), TwoTexts()
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent}-01", "X-Request-Id": "r-2"}
    chat = lambda client: client.post("/v1/chat/completions", json=CHAT, headers=headers)  # noqa: E731
    calls = [chat, post("/v1/rewards", {"problem": PROBLEM}), *PROBES]
    asyncio.run(asked(watched(scorer, generator=generator, traces=traces), *calls))
    traces.close()
    assert set(seen.services) == {"/v1/traces prm_ray"}
    spans = {span.name: span for span in seen.spans}
    root = spans["POST /v1/chat/completions"]
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (trace_id, parent, Span.SPAN_KIND_SERVER)
    assert {
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "prm_ray.request_id": "r-2",
    }.items() <= attributes(root).items()
    assert generator.headers["traceparent"] == f"00-{trace_id}-{root.span_id.hex()}-01"
    parents = {name: spans[name].parent_span_id for name in ("generate", "score", "queue", "compute")}
    score = spans["score"].span_id
    assert parents == {"generate": root.span_id, "score": root.span_id, "queue": score, "compute": score}
    times = [(spans[name].start_time_unix_nano, spans[name].end_time_unix_nano) for name in ("queue", "compute")]
    assert root.start_time_unix_nano <= times[0][0] <= times[0][1] == times[1][0] < times[1][1]
    assert times[1][1] <= root.end_time_unix_nano
    assert attributes(spans["score"])["prm_ray.candidates"] == 2
    assert attributes(spans["POST /v1/rewards"])["error.type"] == "invalid_request"
    assert not any(name.startswith("GET") for name in spans) and PROBLEM not in str(seen.spans)


def test_traces_are_off_unless_asked_for_and_what_is_not_here_is_named() -> None:
    assert not wants_traces(None, {})
    assert wants_traces("http://127.0.0.1:4318", {})
    assert wants_traces(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    assert wants_traces(None, {"OTEL_TRACES_EXPORTER": "console"})
    assert not wants_traces("http://127.0.0.1:4318", {"OTEL_SDK_DISABLED": "true"})
    assert not wants_traces("http://127.0.0.1:4318", {"OTEL_TRACES_EXPORTER": "none"})
    with pytest.raises(UserError, match="OTEL_TRACES_EXPORTER is 'zipkin'; it must be otlp, console or none"):
        wants_traces(None, {"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(UserError, match="OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf"):
        wants_traces("http://127.0.0.1:4318", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
