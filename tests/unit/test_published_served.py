"""Published reward models behind the server and in a search: what each response gets, and what it says of tokens."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prm_ray.integrations.verl import score_response, write_step_rewards
from prm_ray.publishedscorer import PublishedScorer
from prm_ray.scoring.asks import Ask
from prm_ray.scoring.served import ServedModel
from prm_ray.serve.asking import Gateway
from prm_ray.stages.searching.workers import ScorerActor
from prm_ray.texts import text_step_ends
from tests.gatewaytoys import Whole
from tests.published import save_published
from tests.serving import FACTS, asked, over_http, post, tiny_api

PROBLEM = "1 + 2 + 3"
GOOD = ["1 + 2 = 3\n\n3 + 3 = 6", "6"]
LONG, TAGGED = "ab" * 300, "1 <extra_0>\n\n6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_published(tmp_path_factory.mktemp("published"), "qwen_prm")


def load(folder: str, step_rule: str = "blank_line", style: Any = "qwen_prm") -> PublishedScorer:
    return PublishedScorer.from_pretrained(folder, style=style, dtype="float32", step_rule=step_rule)


def results(scorer: PublishedScorer, responses: list[Any], **more: Any) -> list[dict[str, Any]]:
    facts = {"demo": FACTS("demo", reward="qwen_prm", with_reference=False)}
    body = {"problem": PROBLEM, "responses": responses} | more
    (reply,) = asyncio.run(asked(tiny_api({"demo": scorer}, facts=facts), post("/v1/rewards", body)))
    assert reply.status_code == 200, reply.text
    return reply.json()["results"]


@pytest.mark.parametrize("truncate", [False, True])
def test_a_response_that_it_cannot_read_fails_alone(folder: str, truncate: bool) -> None:
    scorer = load(folder)
    found = results(scorer, [GOOD[0], LONG, TAGGED, [5, 6], " ", GOOD[1]], truncate=truncate)
    kinds = [item["error"] and item["error"]["type"] for item in found]
    assert kinds == [None, "too_long", "invalid_response", "invalid_response", "empty_response", None]
    for number in (1, 2, 3, 4):
        assert found[number]["error"]["message"].startswith(f"response {number}"), found[number]
    rewards = [[step["reward"] for step in found[number]["steps"]] for number in (0, 5)]
    assert rewards == [pytest.approx(each.step_rewards, abs=1e-5) for each in scorer.score(PROBLEM, GOOD)]


CHAT = [{"role": "user", "content": PROBLEM}]
ANSWERED = [*CHAT, {"role": "assistant", "content": "6"}]
WHOLE = "<|user|>1 + 2<|end|><|assistant|>3"
CONVERSATIONS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/rewards", {"messages": CHAT, "responses": ["6"]}),
    ("/v1/rerank", {"prompt_tokens": [1, 2], "documents": ["6"]}),
    ("/classify", {"messages": ANSWERED}),
    ("/pooling", {"messages": ANSWERED}),
    ("/v1/chat/completions", {"messages": [*ANSWERED, *CHAT]}),
    ("/v1/chat/completions", {"messages": [*ANSWERED, *CHAT], "prm": {"strategy": "adaptive"}}),
    ("/classify", {"input": WHOLE}),
    ("/pooling", {"input": [1, 2, 3]}),
    ("/pooling", {"input": [WHOLE, "1 + 2 = 3\n\n" * 9000]}),
    ("/get_reward", {"query": [WHOLE]}),
    ("/get_reward", {"query": ["1 + 2 = 3"], "prompts": ["1 + 2 ="]}),
]


@pytest.mark.parametrize("style", ["math_shepherd", "qwen_prm"])
def test_a_conversation_is_refused_with_what_to_send_in_its_place(tmp_path: Path, style: str) -> None:
    """math_shepherd is published without a chat template, by which its parts could be told."""
    facts = {"demo": FACTS("demo", reward=style, with_reference=False)}
    scorer = load(save_published(tmp_path, style), style=style)
    api = tiny_api({"demo": scorer}, facts=facts, gateway=Gateway(Whole(), 2, None, 600.0))
    replies = asyncio.run(asked(api, *(post(*call) for call in CONVERSATIONS)))
    for (path, body), reply in zip(CONVERSATIONS, replies, strict=True):
        error = reply.json()["error"]
        assert (reply.status_code, error["type"]) == (422, "invalid_request"), (path, body, error)
        is_whole = "input" in body or "query" in body
        wanted = "send the problem as a text and the responses apart" if is_whole else "must be a text"
        assert wanted in error["message"] and "\n" not in error["message"]


def test_a_blank_step_of_a_rule_of_ones_own_fails_its_response_alone(folder: str) -> None:
    blank, good = results(load(folder, step_rule=r"regex:\s+|="), ["1 =  2", "1=2"])
    assert blank["error"]["message"].startswith("response 0: step 2 of") and good["error"] is None


def test_a_search_scores_the_other_problems_responses(folder: str) -> None:
    facts = FACTS("demo", reward="qwen_prm", with_reference=False, step_rule="blank_line")
    model = ServedModel(facts, folder, is_published=True, dtype="float32", token_budget=500, cache_tokens=0)

    async def score() -> list[Any]:
        actor = ScorerActor(model, "min", None)
        try:
            asks = [(PROBLEM, GOOD[0]), ("2 + 2", LONG), ("4 + 4", TAGGED), (PROBLEM, GOOD[1])]
            return await actor.run([Ask(problem, [response]) for problem, response in asks])
        finally:
            await actor.close()

    first, long, tagged, last = asyncio.run(score())
    scored = load(folder).score(PROBLEM, GOOD)
    assert [first.value, last.value] == pytest.approx([each.rewards["min"] for each in scored], abs=1e-5)
    assert long.error.startswith("too_long: response 0") and tagged.error.startswith("invalid_response: response 0")


@pytest.mark.parametrize("style", ["value_head", "math_shepherd", "rlhflow", "qwen_prm"])
def test_steps_are_counted_in_tokens_of_the_response(tmp_path: Path, style: str) -> None:
    """As the others do; the model's own text has the problem in it, or the response once a step."""
    scorer = load(save_published(tmp_path, style), style=style)
    text = "1 + 2 = 3\n\n3 + 3 =  6\n\n\n Answer: 6"
    count = [
        len(scorer.tokenizer(step, add_special_tokens=False).input_ids) for step in scorer.score("", [text])[0].steps
    ]
    (found,) = results(scorer, [text])
    assert len(count) == 3 and [step["num_tokens"] for step in found["steps"]] == count
    assert found["num_tokens"] == sum(count) == len(scorer.tokenizer(text, add_special_tokens=False).input_ids)


def test_step_rewards_of_a_published_model_fit_into_the_trainers_row(folder: str) -> None:
    facts = {"demo": FACTS("demo", reward="qwen_prm", with_reference=False)}
    scorer = load(folder)
    with over_http(tiny_api({"demo": scorer}, facts=facts)) as url:
        found = asyncio.run(score_response(PROBLEM, GOOD[0], url=url))
    row = [0.0] * len(scorer.tokenizer(GOOD[0], add_special_tokens=False).input_ids)
    write_step_rewards(row, found["step_rewards"], found["step_ends"])
    first, last = (place for place, reward in enumerate(row) if reward)
    assert scorer.tokenizer.decode(scorer.tokenizer(GOOD[0]).input_ids[: first + 1]) == "1 + 2 = 3\n\n"
    assert last == len(row) - 1


def test_steps_end_with_their_tokens_also_where_spans_leave_white_space_out() -> None:
    """As some byte-level tokenizers do: here a full stop is one token with the blank line behind it."""
    spans = {"a": (0, 1), ".\n\n": (1, 2), "b": (4, 5), "\n\n": (7, 7), " c": (8, 9)}

    def tokenizer(text: str, **_: Any) -> dict[str, Any]:
        assert text == "".join(spans)
        return {"offset_mapping": list(spans.values())}

    for steps, ends in ((["a.\n\n", "b\n\n", " c"], [2, 4, 5]), (["a.\n\nb\n\n ", "c"], [4, 5])):
        assert text_step_ends(tokenizer, steps) == ends  # type: ignore[arg-type]
