"""Published reward models behind the server and in a search: what each response gets, and what it says of tokens."""

import asyncio
from typing import Any

import pytest

from prm_ray.publishedscorer import PublishedScorer
from prm_ray.scoring.served import ServedModel
from prm_ray.stages.searching.workers import ScorerActor
from tests.published import save_published
from tests.serving import FACTS, asked, post, tiny_api

PROBLEM = "1 + 2 + 3"
GOOD = ["1 + 2 = 3\n\n3 + 3 = 6", "6"]
LONG, TAGGED = "ab" * 300, "1 <extra_0>\n\n6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_published(tmp_path_factory.mktemp("published"), "qwen_prm")


def load(folder: str, step_rule: str = "blank_line") -> PublishedScorer:
    return PublishedScorer.from_pretrained(folder, style="qwen_prm", dtype="float32", step_rule=step_rule)


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


def test_a_blank_step_of_a_rule_of_ones_own_fails_its_response_alone(folder: str) -> None:
    blank, good = results(load(folder, step_rule=r"regex:\s+|="), ["1 =  2", "1=2"])
    assert blank["error"]["message"].startswith("response 0: step 2 of") and good["error"] is None


def test_a_search_scores_the_other_problems_responses(folder: str) -> None:
    facts = FACTS("demo", reward="qwen_prm", with_reference=False, step_rule="blank_line")
    model = ServedModel(facts, folder, is_published=True, dtype="float32", token_budget=500, cache_tokens=0)

    async def score() -> list[Any]:
        actor = ScorerActor(model, "min", None)
        try:
            return await actor.run([(PROBLEM, GOOD[0]), ("2 + 2", LONG), ("4 + 4", TAGGED), (PROBLEM, GOOD[1])])
        finally:
            await actor.close()

    first, long, tagged, last = asyncio.run(score())
    scored = load(folder).score(PROBLEM, GOOD)
    assert [first.value, last.value] == pytest.approx([each.rewards["min"] for each in scored], abs=1e-5)
    assert long.error.startswith("too_long: response 0") and tagged.error.startswith("invalid_response: response 0")
