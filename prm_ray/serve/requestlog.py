"""One log record a request, its facts as attributes (`extra`): a formatter for JSON makes a line of them."""

from __future__ import annotations

import logging
from typing import Any

from prm_ray.scoring.asks import Ask
from prm_ray.serve.requestrecord import RequestRecord, Scoring

REQUESTS_LOG = "prm_ray.requests"
log = logging.getLogger(REQUESTS_LOG)

PROBES = frozenset({"/healthz", "/health", "/readyz", "/metrics"})
"""Asked every few seconds by machines: only their failures are worth a line."""
TEXT_LIMIT = 500
"""Characters of a text, where texts are logged at all."""
RESPONSES_LIMIT = 8


def log_request(record: RequestRecord, with_text: bool) -> None:
    """`with_text`: what was asked too, cut at the limits above."""
    if record.route in PROBES and record.error is None:
        return
    facts = request_facts(record)
    if with_text:
        facts["texts"] = [text for scoring in record.scorings[:RESPONSES_LIMIT] for text in _texts(scoring)]
    log.info("%s %s %s", record.method, record.route, record.status, extra=facts)


def request_facts(record: RequestRecord) -> dict[str, Any]:
    """What is known of it. Tokens and candidates add up over its questions to models; seconds are the longest."""
    costs = [scoring.cost for scoring in record.scorings if scoring.cost is not None]
    facts: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "seconds": round(record.seconds, 6),
        "key": record.key,
        "error": record.error,
        "model": record.model,
    }
    if record.scorings:
        facts["candidates"] = sum(scoring.num_responses for scoring in record.scorings)
        facts["failed_candidates"] = sum(scoring.failures.total() for scoring in record.scorings)
    if costs:
        facts["prompt_tokens"] = sum(cost.prompt_tokens for cost in costs)
        facts["response_tokens"] = sum(cost.response_tokens for cost in costs)
        facts["queue_seconds"] = round(max(cost.queued_seconds for cost in costs), 6)
        facts["compute_seconds"] = round(max(cost.computed_seconds for cost in costs), 6)
        facts["batch_jobs"] = max((batch.num_jobs for cost in costs for batch in cost.batches), default=0)
        facts["replica"] = costs[0].replica
    if (generation := record.generation) is not None:
        facts["generation_seconds"] = round(generation.end - generation.start, 6)
        facts["generated_candidates"] = generation.num_candidates
        facts["generated_tokens"] = generation.completion_tokens
    if record.trace_id is not None:
        facts["trace_id"] = record.trace_id
    return facts


def _texts(scoring: Scoring) -> list[dict[str, Any]]:
    """Token ids are no text, and left out."""
    return [
        {
            "prompt": _cut(ask.problem if isinstance(ask, Ask) else ask.prompt),
            "responses": [_cut(response) for response in ask.responses[:RESPONSES_LIMIT]],
        }
        for ask in scoring.asks[:RESPONSES_LIMIT]
    ]


def _cut(text: Any) -> Any:
    if isinstance(text, str):
        return text[:TEXT_LIMIT]
    if isinstance(text, list) and text and isinstance(text[0], dict):
        return [{"role": each["role"], "content": each["content"][:TEXT_LIMIT]} for each in text[-RESPONSES_LIMIT:]]
    return None
