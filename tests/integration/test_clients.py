"""Other projects' own clients and request shapes against the server over HTTP, with a tiny model behind it.

What a client reads must be the scorer's rewards; docs/serving.md has a table of these tests. Clients that bring many
packages are no part of the environment, and are skipped where they are not installed.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import huggingface_hub
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm_ray.models import encode_prompt
from prm_ray.scorer import Scorer
from prm_ray.serve.asking import Gateway
from prm_ray.serve.bodies import sigmoid
from prm_ray.serve.generator import Candidate, Generated
from tests.serving import over_http, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"
RESPONSES = ["1 + 2 = 3\n3 + 4 = 7\n", "1 + 2 = 4\nAnswer: 8", "7"]
MESSAGES = [{"role": "user", "content": PROBLEM}]


class TinyGenerator:
    """Samples from a model in this process."""

    def __init__(self, folder: str):
        self._model, self._tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )

    async def generate(self, body: dict[str, Any], count: int, seconds: float) -> Generated:
        prompt = torch.tensor([encode_prompt(self._tokenizer, body["messages"])])
        torch.manual_seed(0)
        length = body.get("max_tokens", 12)
        options = {"do_sample": True, "num_return_sequences": count, "max_new_tokens": length, "suppress_tokens": [0]}
        tokens = self._model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, prompt.shape[1] :]
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
        candidates = [Candidate(text, "length") for text in texts]
        return Generated(candidates, "tiny", prompt.shape[1] * 1, length * count)


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture(scope="module")
def url(scorer: Scorer, tiny_model: str) -> Iterator[str]:
    gateway = Gateway(TinyGenerator(tiny_model), 4, None, 30.0)
    with over_http(tiny_api({"demo": scorer}, gateway=gateway)) as url:
        yield url


def rewards(scorer: Scorer, how: str = "min", problem: Any = PROBLEM, responses: Any = RESPONSES) -> list[float]:
    return [each.rewards[how] for each in scorer.score(problem, responses)]


def ranked(scorer: Scorer) -> list[tuple[int, float]]:
    """(index, reward), best first: what every rerank client must read, to five digits."""
    return sorted(enumerate(rewards(scorer)), key=lambda pair: -pair[1])


def check_ranking(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [index for index, _ in found] == [index for index, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def posted(url: str, path: str, body: Any) -> Any:
    reply = httpx.post(url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.fixture(scope="module")
def chat(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat_completions_gets_the_best_of_n(chat: openai.OpenAI, scorer: Scorer) -> None:
    prm = {"aggregation": "mean", "return_candidates": True}
    found = chat.chat.completions.create(
        model="demo", messages=MESSAGES, n=2, max_tokens=8, extra_body={"best_of": 6, "prm": prm}
    )
    assert found.model_extra is not None
    candidates = [each["text"] for each in found.model_extra["prm_metadata"]["candidates"]]
    scored = sorted(zip(rewards(scorer, "mean", MESSAGES, candidates), candidates, strict=True), reverse=True)
    assert [choice.message.content for choice in found.choices] == [text for _, text in scored[:2]]
    assert found.model_extra["prm_metadata"]["rewards"] == pytest.approx([reward for reward, _ in scored[:2]], abs=1e-5)
    assert found.usage is not None and found.usage.completion_tokens == 6 * 8
    parts = [{"type": "text", "text": "1 + 2"}, {"type": "text", "text": " + 4"}]
    again = [{"role": "user", "content": parts}, found.choices[0].message, {"role": "user", "content": "Sure?"}]
    assert chat.chat.completions.create(model="demo", messages=again).choices[0].message.content


def test_openai_chat_completions_streams_the_same_answer(chat: openai.OpenAI) -> None:
    whole = chat.chat.completions.create(model="demo", messages=MESSAGES)
    stream = chat.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "length"
    without_usage = chat.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    pieces = [(chunk.choices[0].delta.content or "", chunk.model_extra or {}) for chunk in without_usage]
    assert "".join(piece for piece, _ in pieces) == whole.choices[0].message.content
    assert pieces[-1][1]["prm_metadata"]["num_candidates"] == 4


def test_openai_errors_keep_their_message_and_models_are_listed(chat: openai.OpenAI) -> None:
    assert [model.id for model in chat.models.list()] == ["demo"]
    assert chat.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served"):
        chat.models.retrieve("other")
    with pytest.raises(openai.UnprocessableEntityError, match="best_of is 1; it must be at least n, 2"):
        chat.chat.completions.create(model="demo", messages=MESSAGES, n=2, extra_body={"best_of": 1})
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served"):
        chat.chat.completions.create(model="demo", messages=MESSAGES, extra_body={"prm": {"model": "other"}})


def test_huggingface_hub_chat_completion(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # this machine is not the hub
    client = huggingface_hub.InferenceClient(base_url=url, api_key="none")
    whole = client.chat_completion(MESSAGES, max_tokens=8, extra_body={"best_of": 2})
    streamed = client.chat_completion(MESSAGES, max_tokens=8, extra_body={"best_of": 2}, stream=True)
    text = "".join(choice.delta.content or "" for chunk in streamed for choice in chunk.choices)
    assert whole.choices[0].message.content == text and text


def test_cohere_rerank_v2_and_v1(url: str, scorer: Scorer) -> None:
    cohere = pytest.importorskip("cohere")
    found = cohere.ClientV2(api_key="none", base_url=url).rerank(
        model="demo", query=PROBLEM, documents=RESPONSES, top_n=2, max_tokens_per_doc=4096
    )
    check_ranking([(each.index, each.relevance_score) for each in found.results], ranked(scorer)[:2])
    assert found.meta.billed_units.search_units == 1
    old = cohere.Client(api_key="none", base_url=url).rerank(
        model="demo", query=PROBLEM, documents=[{"text": text} for text in RESPONSES], return_documents=True
    )
    check_ranking([(each.index, each.relevance_score) for each in old.results], ranked(scorer))
    assert [each.document.text for each in old.results] == [RESPONSES[each.index] for each in old.results]


def test_langchain_cohere_rerank(url: str, scorer: Scorer) -> None:
    langchain_cohere = pytest.importorskip("langchain_cohere", reason="not in the environment: many packages")
    rerank = langchain_cohere.CohereRerank(cohere_api_key="none", base_url=url, model="demo", top_n=3)
    found = rerank.rerank(documents=RESPONSES, query=PROBLEM)
    check_ranking([(each["index"], each["relevance_score"]) for each in found], ranked(scorer))


@pytest.mark.parametrize(
    ("provider", "path"), [("cohere", "/v2/rerank"), ("hosted_vllm", ""), ("jina_ai", "/v1/rerank")]
)
def test_litellm_rerank(url: str, scorer: Scorer, provider: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet for prices
    litellm = pytest.importorskip("litellm", reason="not in the environment: it needs older releases of what is there")
    found = litellm.rerank(
        model=f"{provider}/demo", query=PROBLEM, documents=RESPONSES, api_base=url + path, api_key="none"
    )
    check_ranking([(each["index"], each["relevance_score"]) for each in found.results], ranked(scorer))


def test_jina_as_its_documents_send_it(url: str, scorer: Scorer) -> None:
    body = {"model": "demo", "query": PROBLEM, "top_n": 3, "documents": RESPONSES, "return_documents": False}
    found = posted(url, "/v1/rerank", body)
    check_ranking([(each["index"], each["relevance_score"]) for each in found["results"]], ranked(scorer))
    assert found["model"] == "demo" and found["usage"]["total_tokens"] > 0


def test_text_embeddings_inference_as_its_documents_send_it(url: str, scorer: Scorer) -> None:
    found = posted(url, "/rerank", {"query": PROBLEM, "texts": RESPONSES, "raw_scores": False, "return_text": True})
    expected = [(index, sigmoid(reward)) for index, reward in ranked(scorer)]
    check_ranking([(each["index"], each["score"]) for each in found], expected)
    assert [each["text"] for each in found] == [RESPONSES[index] for index, _ in expected]
    assert httpx.get(f"{url}/health", timeout=120).status_code == 200


def test_vllms_own_requests_and_replies(url: str, scorer: Scorer) -> None:
    """Bodies as vLLM's classes write them, replies as they read them."""
    scoring = pytest.importorskip("vllm.entrypoints.pooling.scoring.protocol")
    from vllm.entrypoints.pooling.classify import protocol as classify
    from vllm.entrypoints.pooling.pooling import protocol as pooling

    tokenizer = scorer.tokenizer
    prompt = tokenizer.decode(encode_prompt(tokenizer, MESSAGES))
    whole = [f"{prompt}{text}{tokenizer.eos_token}" for text in RESPONSES]

    def ask(path: str, request: Any, reply: Any) -> Any:
        body = request.model_dump(mode="json", exclude_unset=True) | {"request_id": request.request_id}
        return reply.model_validate(posted(url, path, body))

    score = scoring.ScoreQueriesDocumentsRequest(model="demo", queries=PROBLEM, documents=RESPONSES)
    found = ask("/score", score, scoring.ScoreResponse)
    assert [each.score for each in found.data] == pytest.approx(rewards(scorer), abs=1e-5)
    rerank = scoring.RerankRequest(model="demo", query=PROBLEM, documents=RESPONSES, max_tokens_per_doc=0)
    found = ask("/rerank", rerank, scoring.RerankResponse)
    check_ranking([(each.index, each.relevance_score) for each in found.results], ranked(scorer))
    steps = pooling.PoolingCompletionRequest(model="demo", input=whole, task="token_classify")
    found = ask("/pooling", steps, pooling.PoolingResponse)
    for each, ours in zip(found.data, scorer.score(PROBLEM, RESPONSES), strict=True):
        assert [row[0] for row in each.data] == pytest.approx(ours.step_rewards, abs=1e-5)
    one = classify.ClassificationCompletionRequest(model="demo", input=whole[0], use_activation=False)
    found = ask("/classify", one, classify.ClassificationResponse)
    assert found.data[-1].probs[-1] == pytest.approx(rewards(scorer)[0], abs=1e-5)  # where verl reads it
