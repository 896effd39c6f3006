"""Metrics and log records of the application as it is served, over a tiny model in this process."""

import asyncio
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from prm_ray.core.packing import shared_prefix
from prm_ray.scorer import Scorer
from prm_ray.serve.generator import Generated
from prm_ray.serve.keys import KeyRing, new_key
from tests.serving import LIMITS, PROBES, TwoTexts, asked, post, watched

PROBLEM = "1 + 2 + 4"
RESPONSES = ["1 + 2 = 3\n3 + 4 = 7\n", "1 + 2 = 4\nAnswer: 8", ""]
REWARDS = {"problem": PROBLEM, "responses": RESPONSES}
CHAT = {"messages": [{"role": "user", "content": PROBLEM}], "best_of": 2}
DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster/grafana-dashboard.json").read_text())


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    kinds = {"dtype": "float32", "beta": 0.5, "step_rule": "newline"}
    return Scorer.from_pretrained(tiny_model, other_tiny_model, cache_tokens=1000, **kinds)


def scrape(api: FastAPI, *calls: Any) -> dict[tuple[str, ...], float]:
    """(name, label values sorted by label) -> value of every sample, after the calls."""
    *_, page = asyncio.run(asked(api, *calls, lambda client: client.get("/metrics")))
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_metrics_count_requests_errors_tokens_and_stages(scorer: Scorer) -> None:
    calls = [
        post("/v1/rewards", REWARDS),
        post("/v1/rewards", {"problem": PROBLEM}),
        post("/v1/chat/completions", CHAT),
    ]
    found = scrape(watched(scorer), *calls)
    assert found["prm_ray_http_requests_total", "demo", "/v1/rewards", "200"] == 1
    assert found["prm_ray_http_requests_total", "", "/v1/rewards", "422"] == 1
    assert found["prm_ray_errors_total", "/v1/rewards", "invalid_request"] == 1
    prepared = scorer.prepare(PROBLEM, RESPONSES[:2])
    assert found["prm_ray_scored_tokens_total", "prompt", "demo"] == 2 * len(prepared.prompt_tokens)
    responses = prepared.num_tokens - len(prepared.prompt_tokens)
    assert found["prm_ray_scored_tokens_total", "response", "demo"] == 2 * responses
    assert found["prm_ray_scored_responses_total", "demo"] == 5
    assert found["prm_ray_failed_responses_total", "demo", "empty_response"] == 1
    for stage in ("queue", "compute"):
        assert found["prm_ray_stage_duration_seconds_count", "demo", stage] == 2
    assert found["prm_ray_stage_duration_seconds_count", "", "generation"] == 1
    assert found["prm_ray_generator_tokens_total", "completion"] == 20
    assert found["prm_ray_http_request_duration_seconds_count", "/v1/rewards"] == 2
    assert found["prm_ray_batch_jobs_sum", "demo"] == 2
    assert found["prm_ray_batch_fill_ratio_sum", "demo"] == pytest.approx(2 * prepared.num_tokens / LIMITS.token_budget)
    assert (found["prm_ray_ready_replicas", "demo"], found["prm_ray_queued_tokens", "demo"]) == (1, 0)
    assert found[("prm_ray_http_requests_in_progress",)] == 1, "the scrape itself"


def test_cache_hits_are_the_tokens_that_were_not_computed_again(scorer: Scorer) -> None:
    cache, problem, texts = scorer.policy_cache, "9 + 9 + 9", ["9 + 9 = 18", "9 + 9 = 18\n18 + 9 = 27"]
    assert cache is not None
    cache.clear()
    start = cache.num_computed
    calls = [post("/v1/rewards", {"problem": problem, "responses": responses}) for responses in (texts[:1], texts)]
    metrics = scrape(watched(scorer), *calls)
    first, second = scorer.prepare(problem, texts).group.responses
    prompt = len(scorer.prepare(problem, texts).prompt_tokens)
    hits = metrics["prm_ray_prefix_cache_hit_tokens_total", "demo"]
    assert hits == prompt + len(first), "the second request's; those of the first were new"
    distinct = prompt + len(first) + len(second) - shared_prefix(np.array(first), np.array(second))
    assert cache.num_computed - start == (prompt + len(first)) + (distinct - hits)


def test_requests_that_are_merged_into_a_batch_count_it_once(scorer: Scorer) -> None:
    async def together(client: httpx.AsyncClient) -> httpx.Response:
        bodies = [{"problem": f"{number} + 1", "responses": ["2"]} for number in range(8)]
        replies = await asyncio.gather(*(client.post("/v1/rewards", json=body) for body in bodies))
        assert {reply.status_code for reply in replies} == {200}
        return replies[0]

    found = scrape(watched(scorer), together)
    assert found["prm_ray_batch_jobs_sum", "demo"] == 8
    assert found["prm_ray_batch_jobs_count", "demo"] < 8


def test_what_clients_make_up_is_no_label(scorer: Scorer) -> None:
    calls = [post(f"/v1/secret-{number}", {}) for number in range(3)]
    calls += [post("/v1/rewards", REWARDS | {"model": f"made-up-{number}"}) for number in range(3)]
    calls += [lambda client: client.request("BREW", "/v1/rewards"), lambda client: client.get("/v1/rewards")]
    found = scrape(watched(scorer), *calls)
    assert found["prm_ray_http_requests_total", "", "unknown", "404"] == 3
    assert found["prm_ray_errors_total", "/v1/rewards", "model_not_found"] == 3
    assert found["prm_ray_errors_total", "/v1/rewards", "method_not_allowed"] == 2
    assert not re.search("secret|made-up|BREW", str(found))


def test_metrics_need_a_key_and_count_rejections_by_its_name(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prm_ray.serve.guard.time", SimpleNamespace(monotonic=lambda: 0.0))
    key, line = new_key("trainer", 12)
    other, other_line = new_key("scraper")
    (tmp_path / "keys").write_text(f"{line}\n{other_line}\n")
    api = watched(scorer, KeyRing(tmp_path / "keys"))
    calls = [lambda client: client.get("/v1/models", headers={"X-API-Key": key})] * 3
    calls += [lambda client: client.get("/v1/models", headers={"X-API-Key": "wrong"})]
    calls += [
        lambda client: client.get("/metrics"),
        lambda client: client.get("/metrics", headers={"X-API-Key": other}),
    ]
    *_, refused, page = asyncio.run(asked(api, *calls))
    assert (refused.status_code, page.status_code) == (401, 200)
    assert 'prm_ray_rejected_requests_total{key="trainer",reason="rate_limited"} 1.0' in page.text
    assert 'prm_ray_rejected_requests_total{key="",reason="unauthorized"} 2.0' in page.text
    assert key not in page.text and "wrong" not in page.text


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "prm_ray.requests"]


def test_a_request_is_a_log_record_without_its_text(scorer: Scorer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "prm_ray")
    calls = [lambda client: client.post("/v1/rewards", json=REWARDS, headers={"X-Request-Id": "r-1"})]
    calls += [post("/v1/chat/completions", CHAT), post("/nowhere", {}), *PROBES]
    asyncio.run(asked(watched(scorer), *calls))
    rewards, chat, nowhere = (vars(record) for record in lines(caplog))
    expected = {"request_id": "r-1", "method": "POST", "route": "/v1/rewards", "status": 200, "model": "demo"}
    assert expected.items() <= rewards.items()
    assert (rewards["candidates"], rewards["failed_candidates"], rewards["error"]) == (3, 1, None)
    assert 0 < rewards["compute_seconds"] < rewards["seconds"] and rewards["queue_seconds"] >= 0
    assert (chat["generated_candidates"], chat["generated_tokens"]) == (2, 20) and chat["generation_seconds"] >= 0
    assert (nowhere["route"], nowhere["error"], nowhere["status"]) == ("unknown", "not_found", 404)
    assert PROBLEM not in str([rewards, chat]) and "Answer" not in str([rewards, chat])


def test_text_is_logged_only_if_it_is_asked_for_and_cut(scorer: Scorer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "prm_ray")
    body = {"problem": PROBLEM, "responses": ["7", "8" * 501, [70, 71]]}
    asyncio.run(asked(watched(scorer, log_text=True), post("/v1/rewards", body)))
    (record,) = lines(caplog)
    assert vars(record)["texts"] == [{"prompt": PROBLEM, "responses": ["7", "8" * 500, None]}]
    caplog.clear()
    asyncio.run(asked(watched(scorer, log_requests=False), post("/v1/rewards", body)))
    assert lines(caplog) == []


def test_a_failure_is_found_by_the_id_that_the_reply_has(scorer: Scorer, caplog: pytest.LogCaptureFixture) -> None:
    """One within a replica, which the item tells, and one of the application, which is a 500."""

    class Broken:
        tokenizer, prepare = scorer.tokenizer, scorer.prepare

        def score_prepared(self, prepared: Any) -> Any:
            raise ZeroDivisionError("inside the model")

    async def lost(body: Any, count: int, seconds: float) -> Generated:
        raise KeyError("inside the generator")

    generator = TwoTexts()
    generator.generate = lost  # type: ignore[method-assign]
    api = watched(Broken(), generator=generator)
    item, failed = asyncio.run(asked(api, post("/v1/rewards", REWARDS), post("/v1/chat/completions", CHAT)))
    assert item.json()["results"][0]["error"]["type"] == "internal_error"
    assert failed.status_code == 500 and "inside" not in failed.text
    for reply, cause in ((item, "inside the model"), (failed, "inside the generator")):
        request_id = reply.headers["x-request-id"]
        (record,) = (record for record in caplog.records if request_id in record.getMessage() and record.exc_info)
        assert cause in str(record.exc_info)
    assert scrape(api)["prm_ray_errors_total", "/v1/chat/completions", "internal_error"] == 1


def test_the_dashboard_shows_every_metric_and_only_those(scorer: Scorer, tmp_path: Path) -> None:
    key, line = new_key("trainer")
    (tmp_path / "keys").write_text(line)
    bearer = {"headers": {"Authorization": f"Bearer {key}"}}
    calls = [lambda client: client.post("/v1/rewards", json=REWARDS, **bearer)]
    calls += [lambda client: client.post("/v1/chat/completions", json=CHAT, **bearer), post("/v1/rewards", REWARDS)]
    *_, page = asyncio.run(
        asked(watched(scorer, KeyRing(tmp_path / "keys")), *calls, lambda client: client.get("/metrics", **bearer))
    )
    there = {sample.name for family in text_string_to_metric_families(page.text) for sample in family.samples}
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    queries = [variable["query"]["query"] for variable in variables.values() if variable["type"] == "query"]
    assert DASHBOARD["schemaVersion"] >= 39 and DASHBOARD["uid"] and DASHBOARD["title"]
    for panel in (panel for panel in DASHBOARD["panels"] if panel["type"] != "row"):
        assert panel["title"] and panel["description"] and panel["targets"] and panel["gridPos"].keys() == set("hwxy")
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            queries.append(target["expr"])
    asked_for = {name for query in queries for name in re.findall(r"prm_ray_\w+", query)}
    assert asked_for - there == set()
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in there}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked_for} == families, "each is shown somewhere"
