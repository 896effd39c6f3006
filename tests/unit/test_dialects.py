"""Other servers' endpoints over a tiny model in this process: their bodies in, their replies with our rewards out."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from prm_ray.models import encode_prompt
from prm_ray.scorer import Scorer
from prm_ray.serve.bodies import sigmoid
from tests.serving import asked, post, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"
RESPONSES = ["1 + 2 = 3\n3 + 4 = 7\n", "1 + 2 = 4\nAnswer: 8", "7"]


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture
def api(scorer: Scorer) -> FastAPI:
    return tiny_api({"demo": scorer})


def reply(api: FastAPI, path: str, body: Any, status: int = 200) -> Any:
    found: httpx.Response
    (found,) = asyncio.run(asked(api, post(path, body)))
    assert found.status_code == status, found.text
    return found.json()


def rewards(scorer: Scorer, problem: str = PROBLEM, how: str = "min") -> list[float]:
    return [each.rewards[how] for each in scorer.score(problem, RESPONSES)]


def conversations(scorer: Scorer) -> tuple[str, list[str]]:
    """The prompt as a trainer has it, special tokens kept, and the same with each response and its end of turn."""
    tokenizer = scorer.tokenizer
    prompt = tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": PROBLEM}]))
    assert isinstance(prompt, str)
    return prompt, [f"{prompt}{response}{tokenizer.eos_token}" for response in RESPONSES]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank_of_jina_cohere_and_vllm(api: FastAPI, scorer: Scorer, path: str) -> None:
    body = {"model": "demo", "query": PROBLEM, "documents": [RESPONSES[0], {"text": RESPONSES[1]}], "top_n": 1}
    found = reply(api, path, body | {"max_tokens_per_doc": 4096, "return_documents": False})
    best = max(rewards(scorer)[:2])
    (result,) = found["results"]
    assert result["relevance_score"] == pytest.approx(best, abs=1e-5) and result["document"] is None
    assert found["meta"]["api_version"]["version"] == "2" and found["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("raw", [True, False])
def test_rerank_of_tei_is_a_bare_array_of_sigmoids_or_raw_scores(api: FastAPI, scorer: Scorer, raw: bool) -> None:
    found = reply(api, "/rerank", {"query": PROBLEM, "texts": [*RESPONSES, ""], "raw_scores": raw, "return_text": True})
    expected = [value if raw else sigmoid(value) for value in rewards(scorer)]
    order = sorted(range(3), key=lambda index: -expected[index])
    assert [rank["index"] for rank in found] == [*order, 3]
    assert [rank["score"] for rank in found[:3]] == pytest.approx([expected[index] for index in order], abs=1e-5)
    assert found[3]["score"] is None and found[3]["error"]["type"] == "empty_response" and found[0]["text"]


def test_a_mistake_in_a_shared_path_names_the_field_alone(api: FastAPI) -> None:
    assert reply(api, "/rerank", {"query": "1"}, 422)["error"]["message"] == "documents: Field required"
    assert reply(api, "/rerank", {"texts": ["1"]}, 422)["error"]["message"] == "query: Field required"


@pytest.mark.parametrize(
    ("queries", "documents"), [("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2"), ("query", "items")]
)
def test_score_of_vllm_is_one_to_many_or_one_to_one(api: FastAPI, scorer: Scorer, queries: str, documents: str) -> None:
    found = reply(api, "/score", {queries: PROBLEM, documents: RESPONSES})
    assert [each["score"] for each in found["data"]] == pytest.approx(rewards(scorer), abs=1e-5)
    assert (found["object"], found["data"][1]["index"], found["data"][1]["object"]) == ("list", 1, "score")
    pairs = reply(tiny_api({"demo": scorer}), "/v1/score", {queries: ["7", PROBLEM], documents: ["8", RESPONSES[0]]})
    expected = [scorer.score("7", ["8"])[0].rewards["min"], rewards(scorer)[0]]
    assert [each["score"] for each in pairs["data"]] == pytest.approx(expected, abs=1e-5)
    message = reply(tiny_api({"demo": scorer}), "/score", {queries: ["1", "2"], documents: ["3"]}, 422)
    assert "2 queries and 1 documents" in message["error"]["message"]


def test_pooling_gives_a_row_a_step_and_classify_a_probability(api: FastAPI, scorer: Scorer) -> None:
    _, whole = conversations(scorer)
    pooled, activated, classes, raw = asyncio.run(
        asked(
            api,
            post("/pooling", {"input": whole, "task": "token_classify"}),
            post("/pooling", {"input": whole[0], "task": "classify", "use_activation": True}),
            post("/classify", {"input": whole}),
            post("/classify", {"input": whole, "activation": False}),
        )
    )
    for data, ours in zip(pooled.json()["data"], scorer.score(PROBLEM, RESPONSES), strict=True):
        assert [row[0] for row in data["data"]] == pytest.approx(ours.step_rewards, abs=1e-5)
    assert activated.json()["data"][0]["data"] == pytest.approx([sigmoid(rewards(scorer)[0])], abs=1e-5)
    probs = [each["probs"][-1] for each in classes.json()["data"]]
    assert probs == pytest.approx([sigmoid(value) for value in rewards(scorer)], abs=1e-5)
    assert [each["probs"][-1] for each in raw.json()["data"]] == pytest.approx(rewards(scorer), abs=1e-5)


def test_a_conversation_may_be_token_ids_or_messages(api: FastAPI, scorer: Scorer) -> None:
    _, whole = conversations(scorer)
    ids = scorer.tokenizer(whole[1], add_special_tokens=False).input_ids
    chat = [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": RESPONSES[1]}]
    found = asyncio.run(
        asked(
            api,
            *(
                post("/pooling", {"task": "classify", **each})
                for each in ({"input": ids}, {"input": [ids]}, {"messages": chat})
            ),
        )
    )
    for each in found:
        assert each.json()["data"][0]["data"] == pytest.approx([rewards(scorer)[1]], abs=1e-5)


@pytest.mark.parametrize("with_prompts", [True, False])
def test_get_reward_of_openrlhf(api: FastAPI, scorer: Scorer, with_prompts: bool) -> None:
    prompt, whole = conversations(scorer)
    body: dict[str, Any] = {"query": whole, "labels": ["7"] * 3}
    if with_prompts:
        body["prompts"] = [prompt] * 3
    found = reply(api, "/get_reward", body)
    assert found["rewards"] == pytest.approx(rewards(scorer), abs=1e-5)
    assert found["scores"] == pytest.approx([sigmoid(value) for value in rewards(scorer)], abs=1e-5)
    for steps, ends, ours in zip(
        found["step_rewards"], found["step_ends"], scorer.score(PROBLEM, RESPONSES), strict=True
    ):
        assert steps == pytest.approx(ours.step_rewards, abs=1e-5) and ends == ours.step_ends
    assert found["extra_logs"]["num_steps"] == [2.0, 2.0, 1.0]


def test_what_get_reward_cannot_score_is_null_with_a_reason(api: FastAPI, scorer: Scorer) -> None:
    prompt, whole = conversations(scorer)
    body = {"query": [whole[0], "no template", prompt], "prompts": [prompt, "something else", prompt]}
    found = reply(api, "/get_reward", body)
    assert found["rewards"][0] is not None and found["rewards"][1:] == found["scores"][1:] == [None, None]
    assert [error and error["type"] for error in found["errors"]] == [None, "invalid_response", "empty_response"]
    alone = reply(tiny_api({"demo": scorer}), "/get_reward", {"query": ["no template"]})
    assert "no assistant turn" in alone["errors"][0]["message"]


@pytest.mark.parametrize("with_prompts", [True, False])
def test_a_response_may_begin_with_what_merges_with_the_end_of_its_prompt(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, with_prompts: bool
) -> None:
    """A blank and a number are one token of this tokenizer; the policy sampled the number behind a blank."""
    tokenizer = scorer.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("<|assistant|>", "<|assistant|> "))
    prompt, response = encode_prompt(tokenizer, [{"role": "user", "content": PROBLEM}]), "2 + 1 = 3\n7<|end|>"
    tokens = tokenizer(response, add_special_tokens=False).input_ids
    text = str(tokenizer.decode(prompt))
    assert tokenizer(text + response, add_special_tokens=False).input_ids != [*prompt, *tokens]
    body = {"query": [text + response]} | ({"prompts": [text]} if with_prompts else {})
    found = reply(tiny_api({"demo": scorer}), "/get_reward", body)
    assert found["rewards"] == pytest.approx([scorer.score(list(prompt), [tokens])[0].rewards["min"]], abs=1e-5)


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
def test_no_conversation_at_all_is_refused(api: FastAPI, path: str) -> None:
    assert "at least 1 item" in reply(api, path, {"input": []}, 422)["error"]["message"]
