"""The HTTP bodies: what is accepted, what is refused and with which words."""

import pytest
from pydantic import BaseModel, ValidationError

from prm_ray.serve.protocol import ItemError, RerankRequest, ScoredItem, ScoreRequest, rank, validation_message


def scored(*sums: float | None) -> list[ScoredItem]:
    error = ItemError(type="empty_response", message="the response has no text")
    return [
        ScoredItem(index=i, error=error)
        if value is None
        else ScoredItem(index=i, rewards={"sum": value, "min": -value})
        for i, value in enumerate(sums)
    ]


def refusal(model: type[BaseModel], body: object) -> str:
    with pytest.raises(ValidationError) as info:
        model.model_validate(body)
    return validation_message(list(info.value.errors()))


@pytest.mark.parametrize("name", ["query", "problem"])
@pytest.mark.parametrize("items", ["documents", "responses", "texts"])
def test_rerank_reads_the_names_of_other_rerankers(name: str, items: str):
    request = RerankRequest.model_validate({name: "1 + 1", items: ["2", {"text": "3"}], "model": "any", "top_n": 1})
    assert request.prompt() == "1 + 1"
    assert request.responses() == ["2", "3"]


def test_a_chat_may_stand_for_the_problem():
    messages = [{"role": "user", "content": "1 + 1"}]
    assert ScoreRequest.model_validate({"messages": messages, "responses": ["2"]}).prompt() == messages


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"responses": ["2"]}, "give either problem (or query) or messages"),
        ({"problem": "1", "responses": []}, "responses: List should have at least 1 item"),
        ({"problem": " ", "responses": ["2"]}, "problem: String should match pattern"),
        ({"problem": "1", "responses": ["2", None]}, "responses.1: Input should be a valid string"),
        ({"problem": "1", "responses": ["2"], "top_m": 1}, "top_m: unknown key"),
        ({"messages": [{"role": "assistant", "content": "2"}], "responses": ["2"]}, "must have the role user"),
    ],
)
def test_a_wrong_score_request_is_refused_by_name(body: dict, message: str):
    assert message in refusal(ScoreRequest, body)


def test_a_long_list_of_mistakes_is_cut_short():
    message = refusal(ScoreRequest, {"problem": "1", "responses": [None] * 50})
    assert message.endswith("and 47 more")


def test_an_unknown_aggregation_is_refused_by_name():
    body = {"query": "1", "documents": ["2"], "aggregation": "max"}
    assert "aggregation: Input should be 'sum', 'mean', 'min', 'last'" in refusal(RerankRequest, body)


def test_the_best_comes_first_ties_keep_their_order_and_failures_come_last_without_a_number():
    request = RerankRequest(query="q", documents=["a", "b", " ", "d"])
    ranked = rank(request, scored(0.5, 2.0, None, 2.0), "sum")
    assert [item.index for item in ranked] == [1, 3, 0, 2]
    assert ranked[-1].relevance_score is None and ranked[-1].error is not None
    assert [item.document.text for item in ranked if item.document] == ["b", "d", "a", " "]


def test_the_aggregation_decides_the_order():
    request = RerankRequest(query="q", documents=["a", "b"])
    assert [item.index for item in rank(request, scored(0.5, 2.0), "min")] == [0, 1]


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (1, 1), (2, 2), (9, 3)])
def test_top_n_cuts_the_list_and_zero_means_all(top_n: int | None, count: int):
    request = RerankRequest(query="q", documents=["a", "b", "c"], top_n=top_n, return_documents=False)
    ranked = rank(request, scored(1.0, 2.0, 3.0), "sum")
    assert len(ranked) == count
    assert ranked[0].index == 2 and ranked[0].document is None
