"""The project's own endpoints over a tiny model in this process."""

import asyncio
from dataclasses import replace

import pytest
from fastapi import FastAPI

from prm_ray.scorer import Scorer
from prm_ray.serve.bodies import sigmoid
from tests.serving import LIMITS, asked, post, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"
RESPONSES = ["1 + 2 = 3\n3 + 4 = 7\n", "1 + 2 = 4\nAnswer: 8", "7"]


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture
def api(scorer: Scorer) -> FastAPI:
    return tiny_api({"demo": scorer})


def test_rewards_are_the_scorers_with_spans_that_cut_the_text(api: FastAPI, scorer: Scorer) -> None:
    body = {"problem": PROBLEM, "responses": RESPONSES, "include": ["tokens"], "request_id": "r-1"}
    (reply,) = asyncio.run(asked(api, post("/v1/rewards", body)))
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert (found["id"], found["model"]) == ("r-1", "demo")
    assert found["reward"] == {"kind": "log_ratio", "with_reference": True, "aggregation": "min", "sigmoid": False}
    for ours, text, item in zip(scorer.score(PROBLEM, RESPONSES), RESPONSES, found["results"], strict=True):
        assert item["rewards"] == pytest.approx(ours.rewards, abs=1e-5)
        assert [step["reward"] for step in item["steps"]] == pytest.approx(ours.step_rewards, abs=1e-5)
        assert item["steps"][-1]["prefix_reward"] == pytest.approx(ours.rewards["sum"], abs=1e-5)
        assert [text[step["start"] : step["end"]] for step in item["steps"]] == ours.steps
        assert [token["reward"] for token in item["tokens"]] == pytest.approx(ours.token_rewards, abs=1e-5)
        assert [token["id"] for token in item["tokens"]] == ours.tokens
        assert "".join(text[token["start"] : token["end"]] for token in item["tokens"]) == text
        assert sum(step["num_tokens"] for step in item["steps"]) == item["num_tokens"] == len(ours.tokens)
    prepared = scorer.prepare(PROBLEM, RESPONSES)
    assert found["usage"] == {
        "prompt_tokens": len(prepared.prompt_tokens),
        "completion_tokens": prepared.num_tokens - len(prepared.prompt_tokens),
        "total_tokens": prepared.num_tokens,
    }


def test_texts_messages_and_token_ids_are_one(api: FastAPI, scorer: Scorer) -> None:
    group = scorer.prepare(PROBLEM, RESPONSES).group
    forms = [
        {"problem": PROBLEM, "responses": RESPONSES},
        {"messages": [{"role": "user", "content": PROBLEM}], "responses": RESPONSES},
        {"prompt_tokens": list(group.prompt), "responses": [list(each) for each in group.responses]},
    ]
    first, *others = [
        reply.json()["results"] for reply in asyncio.run(asked(api, *(post("/v1/rewards", each) for each in forms)))
    ]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-5)
            assert [step["text"] for step in two["steps"]] == [step["text"] for step in one["steps"]]


def test_rerank_sorts_and_says_which_number_it_sorted_by(api: FastAPI, scorer: Scorer) -> None:
    body = {"query": PROBLEM, "documents": ["", *RESPONSES], "top_n": 3, "aggregation": "mean", "sigmoid": True}
    plain, other = asyncio.run(
        asked(api, post("/v1/rerank", body), post("/rerank", {"query": PROBLEM, "documents": RESPONSES}))
    )
    rewards = [each.rewards["mean"] for each in scorer.score(PROBLEM, RESPONSES)]
    order = sorted(range(3), key=lambda index: -rewards[index])
    found = plain.json()
    assert [item["index"] for item in found["results"]] == [index + 1 for index in order]
    assert [item["relevance_score"] for item in found["results"]] == pytest.approx([sigmoid(rewards[i]) for i in order])
    assert (found["reward"]["aggregation"], found["reward"]["sigmoid"]) == ("mean", True)
    assert other.json()["reward"]["aggregation"] == "min"


def test_what_cannot_be_scored_has_an_error_and_comes_last(api: FastAPI) -> None:
    documents = {"query": PROBLEM, "documents": ["", RESPONSES[0], " \n", "1" * 600]}
    tokens = {"problem": PROBLEM, "responses": [RESPONSES[0], [5, 10**6]]}
    ranked, scored = asyncio.run(asked(api, post("/rerank", documents), post("/v1/rewards", tokens)))
    results = ranked.json()["results"]
    assert [item["index"] for item in results] == [1, 0, 2, 3]
    kinds = [(item["error"] or {}).get("type") for item in results]
    assert kinds == [None, "empty_response", "empty_response", "too_long"]
    assert all(item["relevance_score"] is None for item in results[1:])
    good, bad = scored.json()["results"]
    assert good["rewards"] and bad["error"]["type"] == "invalid_response" and "1000000" in bad["error"]["message"]


def test_a_response_that_is_too_long_is_cut_if_that_was_asked_for(api: FastAPI, scorer: Scorer) -> None:
    body = {"problem": PROBLEM, "responses": ["1" * 600, "7"], "truncate": True}
    (reply,) = asyncio.run(asked(api, post("/v1/rewards", body)))
    long, short = reply.json()["results"]
    room = 512 - len(scorer.prepare(PROBLEM, ["7"]).prompt_tokens)
    assert long["truncated"] and long["num_tokens"] == room and not short["truncated"]


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (413, "too_many_candidates", {"problem": "1", "responses": ["2"] * 9}),
        (413, "too_many_tokens", {"problem": "1", "responses": ["2" * 400] * 8}),
        (404, "model_not_found", {"problem": "1", "responses": ["2"], "model": "../../etc/passwd"}),
        (422, "invalid_request", {"problem": "1", "responses": "2"}),
        (422, "invalid_request", {"prompt_tokens": [10**6], "responses": ["2"]}),
    ],
)
def test_limits_and_mistakes_have_their_own_statuses(api: FastAPI, status: int, kind: str, body: object) -> None:
    (reply,) = asyncio.run(asked(api, post("/v1/rewards", body)))
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind), reply.text


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[" * 100_000,
        b'{"problem": NaN}',
        b'{"problem": "\\ud800"}',
        b"\xff\xfe",
        b'{"a": 1' + b"0" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_answered_in_kind(api: FastAPI, body: bytes) -> None:
    (reply,) = asyncio.run(
        asked(
            api, lambda client: client.post("/v1/rewards", content=body, headers={"content-type": "application/json"})
        )
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) in {(400, "invalid_json"), (422, "invalid_request")} and error["message"]


def test_a_full_queue_is_429_with_a_time_to_come_back(scorer: Scorer) -> None:
    async def test() -> None:
        limits = replace(LIMITS, max_queued_tokens=50)
        api = tiny_api({"demo": scorer}, limits)
        bodies = [post("/v1/rewards", {"problem": PROBLEM, "responses": ["1" * 300]}) for _ in range(12)]
        replies = [reply for of in await asyncio.gather(*(asked(api, call) for call in bodies)) for reply in of]
        refused = [reply for reply in replies if reply.status_code == 429]
        assert {reply.status_code for reply in replies} == {200, 429}
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert all(reply.json()["error"]["type"] == "overloaded" for reply in refused)

    asyncio.run(test())


def test_clients_at_the_same_time_share_batches_and_get_their_own_numbers(scorer: Scorer) -> None:
    async def test() -> None:
        api = tiny_api({"demo": scorer})
        texts = [f"{number} + 2 = {number + 2}\n7" for number in range(16)]
        calls = [
            post("/v1/rewards", {"problem": f"{number} + 2", "responses": [text]}) for number, text in enumerate(texts)
        ]
        replies = [reply for of in await asyncio.gather(*(asked(api, call) for call in calls)) for reply in of]
        for number, (reply, text) in enumerate(zip(replies, texts, strict=True)):
            (alone,) = scorer.score(f"{number} + 2", [text])
            assert reply.json()["results"][0]["rewards"] == pytest.approx(alone.rewards, abs=1e-4)

    asyncio.run(test())


def test_models_are_listed_and_asked_by_name(scorer: Scorer, tiny_model: str, other_tiny_model: str) -> None:
    other = tiny_scorer(other_tiny_model, tiny_model)
    api = tiny_api({"demo": scorer, "other": other})
    body = {"problem": PROBLEM, "responses": RESPONSES}
    listed, retrieved, unknown, first, named, ready = asyncio.run(
        asked(
            api,
            lambda client: client.get("/v1/models"),
            lambda client: client.get("/v1/models/demo"),
            lambda client: client.get("/v1/models/org/none"),
            post("/v1/rewards", body),
            post("/v1/rewards", body | {"model": "other"}),
            lambda client: client.get("/readyz"),
        )
    )
    assert [model["id"] for model in listed.json()["data"]] == ["demo", "other"]
    assert retrieved.json() == listed.json()["data"][0]
    assert unknown.status_code == 404 and unknown.json()["error"]["type"] == "model_not_found"
    assert (first.json()["model"], named.json()["model"]) == ("demo", "other")
    expected = other.score(PROBLEM, RESPONSES)[0].rewards
    assert named.json()["results"][0]["rewards"] == pytest.approx(expected, abs=1e-5)
    assert ready.json() == {"status": "ok", "replicas": {"demo": 1, "other": 1}}
