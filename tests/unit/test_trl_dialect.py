"""TRL's teacher server over a tiny model: log-probs of given tokens, in both of its reply formats."""

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from prm_ray.core.packing import PromptGroup
from prm_ray.scorer import Scorer
from prm_ray.scoring.asks import ModelFacts
from tests.serving import FACTS, asked, post, tiny_api, tiny_scorer

PATH = "/get_sequence_logprobs/"
PROMPTS = [[5, 6, 7], [9, 8]]
COMPLETIONS = [[10, 11, 12, 13], [20], [30, 31]]
"""The first and the last behind the first prompt."""
BODY = {
    "sequences": [PROMPTS[0] + COMPLETIONS[0], PROMPTS[1] + COMPLETIONS[1], PROMPTS[0] + COMPLETIONS[2], PROMPTS[1]],
    "prompt_lengths": [3, 2, 3, 2],
    "top_logprobs": 1,
}


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture
def api(scorer: Scorer) -> FastAPI:
    return tiny_api({"demo": scorer})


def reply(api: FastAPI, **changes: Any) -> httpx.Response:
    (found,) = asyncio.run(asked(api, post(PATH, BODY | changes)))
    return found


def logprobs(scorer: Scorer, model: str) -> list[list[float]]:
    groups = [PromptGroup(PROMPTS[0], COMPLETIONS[::2]), PromptGroup(PROMPTS[1], COMPLETIONS[1:2])]
    policy, reference = scorer.logprob_pairs(groups)
    (first, last), (middle,) = policy if model == "policy" else reference
    return [[] if values is None else values.tolist() for values in (first, middle, last)] + [[]]


def test_json_holds_the_policys_log_probs_and_those_of_the_reference(api: FastAPI, scorer: Scorer) -> None:
    found = reply(api, response_format="json").json()
    for key, model in (("actual_logprobs", "policy"), ("reference_logprobs", "reference")):
        for ours, expected in zip(found[key], logprobs(scorer, model), strict=True):
            assert [value for (value,) in ours] == pytest.approx(expected, abs=1e-5)
    assert [[token for (token,) in row] for row in found["actual_token_ids"]] == [*COMPLETIONS, []]
    assert found["logprobs"][0] == [[None]] * 4, "which token is the likeliest is not known, so none is named"


@pytest.mark.parametrize("top", [0, 1])
def test_binary_decodes_to_the_same_numbers(api: FastAPI, scorer: Scorer, top: int) -> None:
    """As TRL's client decodes it: float32 and int32 of the shape, each row cut at its completion's length."""
    binary = BODY | {"response_format": "binary", "top_logprobs": top}
    plain, found = (each.json() for each in asyncio.run(asked(api, post(PATH, BODY), post(PATH, binary))))
    assert (found["shape"], found["completion_lengths"]) == ([4, 4, top], [4, 1, 2, 0])

    def decoded(key: str, dtype: str, width: int) -> list[Any]:
        array = np.frombuffer(base64.b64decode(found[key]), dtype).reshape([*found["shape"][:2], width])
        return [row[:length].tolist() for row, length in zip(array, found["completion_lengths"], strict=True)]

    for name, dtype, theirs in (
        ("actual_logprobs_b64", "float32", plain["actual_logprobs"]),
        ("actual_token_ids_b64", "int32", plain["actual_token_ids"]),
        ("reference_logprobs_b64", "float32", plain["reference_logprobs"]),
    ):
        for ours, expected in zip(decoded(name, dtype, 1), theirs, strict=True):
            assert np.array(ours) == pytest.approx(np.array(expected), abs=1e-6)
    assert all(
        value == -np.inf for row in decoded("logprobs_b64", "float32", top) for (*values,) in row for value in values
    )


def test_without_a_reference_the_policys_log_probs_are_there(tiny_model: str) -> None:
    scorer = Scorer.from_pretrained(tiny_model, dtype="float32", with_reference=False, step_rule="newline")
    facts = ModelFacts("demo", "log_ratio", False, "min", "newline")
    found = reply(tiny_api({"demo": scorer}, facts={"demo": facts})).json()
    assert found["reference_logprobs"] is None
    assert [value for (value,) in found["actual_logprobs"][0]] == pytest.approx(logprobs(scorer, "policy")[0], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"top_logprobs": 100}, 422, "top_logprobs is 100; it must be 0 or 1"),
        ({"temperature": 0.5}, 422, "temperature is 0.5; it must be 1"),
        ({"prompt_lengths": [3]}, 422, "4 sequences and 1 prompt_lengths"),
        ({"prompt_lengths": [3, 2, 9, 2]}, 422, "prompt_lengths.2 is 9, but sequences.2 has 5 tokens"),
        ({"prompt_lengths": [3, 0, 3, 2]}, 422, "prompt_lengths.1"),
        (
            {"sequences": [[5, 6], [5, 10**6], [5, 6], [5]], "prompt_lengths": [1] * 4},
            422,
            "sequences.1 has the token id",
        ),
        ({"sequences": [[5, 6], [5] * 600, [5, 6], [5]], "prompt_lengths": [1] * 4}, 413, "sequences.1 has 599 tokens"),
    ],
)
def test_what_is_not_given_is_refused_by_name(api: FastAPI, changes: dict[str, Any], status: int, message: str) -> None:
    found = reply(api, **changes)
    assert found.status_code == status and message in found.json()["error"]["message"], found.text


@pytest.mark.parametrize("response_format", ["json", "binary"])
def test_sequences_that_are_prompts_alone_count_too(api: FastAPI, response_format: str) -> None:
    """Each is a row of the reply, as long as the longest."""
    enough, too_many = (
        {
            "sequences": [PROMPTS[0] + COMPLETIONS[0], *[PROMPTS[1]] * count],
            "prompt_lengths": [3, *[2] * count],
            "response_format": response_format,
        }
        for count in (7, 8)
    )
    good, refused = asyncio.run(asked(api, post(PATH, enough), post(PATH, too_many)))
    assert (good.status_code, refused.status_code) == (200, 413)
    message = "the request has 9 responses, at most 8 are allowed"
    assert refused.json()["error"] == {"type": "too_many_candidates", "message": message}


def test_a_model_with_a_head_has_none(scorer: Scorer) -> None:
    found = reply(tiny_api({"demo": scorer}, facts={"demo": FACTS("demo", reward="value_head", with_reference=False)}))
    assert found.status_code == 422 and "value_head" in found.json()["error"]["message"]
