"""Thousands of requests made from the OpenAPI document, good and bad: no failure of the server, no unknown answer."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from tests.serving import over_http, tiny_scorer, watched

schemathesis = pytest.importorskip("schemathesis")
checks = schemathesis.checks
specs = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKS = [
    checks.not_a_server_error,
    specs.status_code_conformance,
    specs.content_type_conformance,
    specs.response_schema_conformance,
]
CASES_EACH = 100
"""For each operation, once with bodies as the document has them and once with others."""
SETTINGS = settings(
    max_examples=CASES_EACH, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def document(tiny_model: str, other_tiny_model: str) -> Iterator[Any]:
    with over_http(watched(tiny_scorer(tiny_model, other_tiny_model))) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_answer_is_one_that_the_document_tells_of(document: Any) -> None:
    seen: Counter[int] = Counter()

    def try_out(operation: Any, mode: Any) -> None:
        @SETTINGS
        @given(case=operation.as_strategy(generation_mode=mode))
        def asked(case: Any) -> None:
            reply = case.call(timeout=120)
            seen[reply.status_code] += 1
            case.validate_response(reply, checks=CHECKS)

        with suppress(Unsatisfiable):  # an operation without a body has no wrong ones
            asked()

    for found in document.get_all_operations():
        for mode in schemathesis.GenerationMode:
            try_out(found.ok(), mode)
    assert sum(seen.values()) >= 2000, seen
    assert seen[200] >= 200 and seen[422] >= 200, seen
