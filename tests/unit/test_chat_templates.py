"""Messages that a chat template refuses, as Gemma's and Mistral's do a system message or two turns of one role."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig, parse_config
from prm_ray.errors import UserError
from prm_ray.models import load_tokenizer
from prm_ray.problems import Problem
from prm_ray.scorer import Scorer
from prm_ray.scoring.asks import Refusal
from prm_ray.serve.asking import Gateway
from prm_ray.serve.generation import ChatModel
from prm_ray.stages import generate, reference
from prm_ray.stages.generate import prompt_row
from tests.gatewaytoys import Whole, tiny_options
from tests.serving import asked, post, tiny_api, tiny_scorer
from tests.tiny import CHAT_TEMPLATE

STRICT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if 'forbidden' in message['content'] %}{{ raise_exception('A word is forbidden') }}{% endif %}"
    "{% endfor %}"
)
USER = {"role": "user", "content": "1 + 2 + 4"}
REFUSED = [
    ([{"role": "system", "content": "Calculate."}, USER], "System role not supported"),
    ([USER, USER], "Roles must alternate user/assistant"),
    ([USER, USER | {"content": "1 + 2 + 4" * 3000}], "Roles must alternate user/assistant"),
]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "strict.jinja"
    path.write_text(STRICT + CHAT_TEMPLATE)
    return path


@pytest.fixture
def scorer(tiny_model: str, other_tiny_model: str, template: Path) -> Scorer:
    scorer = tiny_scorer(tiny_model, other_tiny_model)
    scorer.tokenizer.chat_template = template.read_text()
    return scorer


@pytest.mark.parametrize(("messages", "reason"), REFUSED)
def test_the_client_is_told_what_the_template_says(scorer: Scorer, messages: list[dict[str, str]], reason: str) -> None:
    body = {"messages": messages, "responses": ["1 + 2 = 3\n7"]}
    (reply,) = asyncio.run(asked(tiny_api({"demo": scorer}), post("/v1/rewards", body)))
    message = f"the model's chat template refuses the messages: {reason}"
    assert (reply.status_code, reply.json()["error"]) == (422, {"type": "invalid_request", "message": message})


def test_so_is_one_of_the_gateway_whose_reward_model_refuses(scorer: Scorer) -> None:
    gateway = Gateway(Whole(), 4, None, 600.0)
    body = {"messages": [USER, USER]}
    (reply,) = asyncio.run(asked(tiny_api({"demo": scorer}, gateway=gateway), post("/v1/chat/completions", body)))
    assert reply.status_code == 422 and "Roles must alternate" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("messages", "reason"), REFUSED)
def test_the_own_generator_refuses_whole_and_step_by_step(
    tiny_model: str, template: Path, messages: list[dict[str, str]], reason: str
) -> None:
    model = ChatModel(tiny_options(tiny_model), "tiny", template)
    expected = Refusal(400, "refused_by_generator", f"the model's chat template refuses the messages: {reason}")
    for answer in (model.complete, model.begin):
        assert asyncio.run(answer({"messages": messages})) == expected


def config(model: str, template: Path, **prompt: Any) -> RunConfig:
    sections = {"model": {"name": model}, "prompt": {"chat_template": str(template), **prompt}}
    return parse_config(sections | {"problems": {"train": "arithmetic", "test": "arithmetic"}})


def test_a_problem_that_the_template_refuses_is_a_row_with_its_reason(tiny_model: str, template: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, template)
    good, bad = (
        prompt_row(config(tiny_model, template), tokenizer, tiny_options(tiny_model), "test", Problem(text, "7"))
        for text in ("1 + 2 + 4", "forbidden + 7")
    )
    assert good["error"] is None and good["prompt_tokens"]
    assert bad["error"] == "prompt_refused: the model's chat template refuses the messages: A word is forbidden"


@pytest.mark.parametrize("stage", [generate, reference])
def test_a_prompt_that_it_refuses_of_every_problem_is_said_before_anything_starts(
    tiny_model: str, template: Path, stage: Any
) -> None:
    stage.check(config(tiny_model, template))
    with pytest.raises(UserError, match="refuses the messages: System role not supported"):
        stage.check(config(tiny_model, template, system="Calculate."))
