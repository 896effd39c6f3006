"""The HTTP bodies: what is accepted, what is refused and with which words."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from prm_ray.serve.api import make_api
from prm_ray.serve.asking import RequestLimits
from prm_ray.serve.bodies import Given, Message, TextPart, validation_message
from prm_ray.serve.dialects.chatbodies import ChatRequest, PrmOptions
from prm_ray.serve.dialects.openrlhf import GetRewardRequest
from prm_ray.serve.dialects.own import RewardsRequest
from prm_ray.serve.dialects.rerank import RerankRequest, TeiRerankRequest
from prm_ray.serve.dialects.trl import SequenceLogprobsRequest
from prm_ray.serve.dialects.vllm import InputRequest, PoolingRequest, ScoreRequest
from prm_ray.serve.generation import GenerationBody
from prm_ray.serve.local import LocalBackend


def refusal(model: type[BaseModel], body: object) -> str:
    with pytest.raises(ValidationError) as info:
        model.model_validate(body)
    return validation_message(list(info.value.errors()))


@pytest.mark.parametrize("name", ["query", "problem"])
@pytest.mark.parametrize("items", ["documents", "responses"])
def test_rerank_reads_the_names_of_other_rerankers(name: str, items: str) -> None:
    request = RerankRequest.model_validate({name: "1 + 1", items: ["2", {"text": "3"}, [4]], "model": "m", "top_n": 1})
    assert request.prompt() == "1 + 1"
    assert request.responses() == ["2", "3", [4]]


def test_a_chat_or_token_ids_may_stand_for_the_problem() -> None:
    messages = [{"role": "user", "content": "1 + 1"}]
    assert RewardsRequest.model_validate({"messages": messages, "responses": ["2"]}).prompt() == messages
    assert RewardsRequest.model_validate({"prompt_tokens": [1, 2], "responses": [[3]]}).prompt() == [1, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"responses": ["2"]}, "give one of problem (or query), messages and prompt_tokens"),
        ({"problem": "1", "prompt_tokens": [1], "responses": ["2"]}, "give one of problem"),
        ({"problem": "1", "responses": []}, "responses: List should have at least 1 item"),
        ({"problem": " ", "responses": ["2"]}, "problem: String should match pattern"),
        ({"problem": "1", "responses": ["2", None]}, "responses.1.str: Input should be a valid string"),
        ({"problem": "1", "responses": [[-1]]}, "responses.0.list"),
        ({"problem": "1", "responses": ["2"], "top_m": 1}, "top_m: unknown key"),
        ({"messages": [{"role": "assistant", "content": "2"}], "responses": ["2"]}, "must have the role user"),
    ],
)
def test_a_wrong_request_is_refused_by_name(body: dict, message: str) -> None:
    assert message in refusal(RewardsRequest, body)


def test_a_long_list_of_mistakes_is_cut_short() -> None:
    message = refusal(RewardsRequest, {"problem": "1", "responses": ["1"], **{f"key{n}": 1 for n in range(50)}})
    assert message.endswith("and 47 more")


MANY = 1000
CHAT = [{"role": "user", "content": "1"}]
LISTS: list[tuple[type[BaseModel], dict]] = [
    (RewardsRequest, {"problem": "1", "responses": [1]}),
    (RewardsRequest, {"problem": "1", "responses": [[-1] * MANY]}),
    (RewardsRequest, {"prompt_tokens": [-1], "responses": ["2"]}),
    (RewardsRequest, {"messages": [1], "responses": ["2"]}),
    (RewardsRequest, {"messages": [{"role": "user", "content": [1] * MANY}], "responses": ["2"]}),
    (RewardsRequest, {"problem": "1", "responses": ["2"], "include": [1]}),
    (RerankRequest, {"query": "1", "documents": [1]}),
    (TeiRerankRequest, {"query": "1", "texts": [1]}),
    (ScoreRequest, {"queries": [1], "documents": ["2"]}),
    (ScoreRequest, {"queries": "1", "documents": [1]}),
    (InputRequest, {"input": [-1]}),
    (InputRequest, {"messages": [1]}),
    (GetRewardRequest, {"query": [1]}),
    (GetRewardRequest, {"query": ["1"], "prompts": [1]}),
    (SequenceLogprobsRequest, {"sequences": [1], "prompt_lengths": [1]}),
    (SequenceLogprobsRequest, {"sequences": [[1]], "prompt_lengths": [0]}),
    (ChatRequest, {"messages": [1]}),
    (GenerationBody, {"messages": [1]}),
    (GenerationBody, {"messages": CHAT, "stop": [1]}),
]
"""A list of one number stands for one of `MANY`, none of which may be there."""


@pytest.mark.parametrize(("model", "body"), LISTS)
def test_a_list_ends_at_its_first_wrong_item(model: type[BaseModel], body: dict) -> None:
    """A body has room for millions of them, and an error takes a kilobyte."""
    many = {key: value * MANY if value in ([1], [-1], [0]) else value for key, value in body.items()}
    with pytest.raises(ValidationError) as info:
        model.model_validate(many)
    assert info.value.error_count() <= 4 and ".0" in validation_message(list(info.value.errors()))


KEYS = {f"key{number}": 1 for number in range(MANY)}
TEXT = {"type": "text", "text": "1"}
OBJECTS: list[tuple[type[BaseModel], dict]] = [
    (RewardsRequest, {"problem": "1", "responses": ["2"]} | KEYS),
    (RewardsRequest, {"messages": [{"role": "user", "content": "1"} | KEYS], "responses": ["2"]}),
    (RewardsRequest, {"messages": [{"role": "user", "content": [TEXT | KEYS]}], "responses": ["2"]}),
    (RerankRequest, {"query": "1", "documents": ["2"]} | KEYS),
    (RerankRequest, {"query": "1", "documents": [{"text": "2"} | KEYS]}),
    (TeiRerankRequest, {"query": "1", "texts": ["2"]} | KEYS),
    (ScoreRequest, {"queries": "1", "documents": ["2"]} | KEYS),
    (InputRequest, {"input": "1"} | KEYS),
    (PoolingRequest, {"input": "1"} | KEYS),
    (GetRewardRequest, {"query": ["1"]} | KEYS),
    (SequenceLogprobsRequest, {"sequences": [[1]], "prompt_lengths": [1]} | KEYS),
    (ChatRequest, {"messages": CHAT} | KEYS),
    (ChatRequest, {"messages": CHAT, "prm": KEYS}),
    (GenerationBody, {"messages": CHAT} | KEYS),
]


@pytest.mark.parametrize(("model", "body"), OBJECTS)
def test_an_object_with_more_keys_than_anybody_means_is_one_error(model: type[BaseModel], body: dict) -> None:
    """Those that are not refused as unknown would be handed on."""
    with pytest.raises(ValidationError) as info:
        model.model_validate(body)
    assert info.value.error_count() <= 4
    assert "keys; it must have at most 256" in validation_message(list(info.value.errors()))


def test_every_object_that_an_endpoint_reads_is_bounded_so() -> None:
    read = [
        route.body_field.field_info.annotation
        for route in make_api(LocalBackend({}, {}), RequestLimits(1, 1)).routes
        if isinstance(route, APIRoute) and route.body_field is not None
    ]
    found = set(models_in(read))
    assert {*(model for model, _ in OBJECTS), Message, TextPart, PrmOptions} - {GenerationBody} <= found
    assert [model.__name__ for model in found if not issubclass(model, Given)] == []


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All that are named in a type, and in the fields of those."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for part in annotation if isinstance(annotation, list) else get_args(annotation):
        yield from models_in(part)


def test_an_unknown_aggregation_is_refused_by_name() -> None:
    body = {"query": "1", "documents": ["2"], "aggregation": "max"}
    assert "aggregation: Input should be 'sum', 'mean', 'min', 'last'" in refusal(RerankRequest, body)
