"""Searches whose reward model reads texts: a beginning is not scored as if the response ended there."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from prm_ray.models import load_tokenizer
from prm_ray.scorer import Scorer
from prm_ray.scoring.asks import Ask, Item, Options, Refusal, Scored
from prm_ray.scoring.replica import Replica
from prm_ray.scoring.sizing import PIECE
from prm_ray.search.candidate import Candidate
from prm_ray.search.driver import ScoreJob, Unit
from prm_ray.search.plan import Plan
from prm_ray.serve.asking import Gateway
from prm_ray.stages.searching.workers import ScorerWorker
from tests.gatewaytoys import ToySteps, Whole
from tests.serving import LIMITS, asked, post, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"
BEGINNING = "1 + 2 = 3\n3 + 4"


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


def items(scorer: Scorer, *asks: Ask) -> list[Item]:
    async def once() -> Scored | Refusal:
        replica = Replica(scorer, LIMITS)
        try:
            return await replica.score(asks, Options())
        finally:
            await replica.close()

    scored = asyncio.run(once())
    assert isinstance(scored, Scored)
    return [item for of_ask in scored.items for item in of_ask]


def rewards(scorer: Scorer, response: Any) -> Any:
    return pytest.approx(scorer.score(PROBLEM, [response])[0].step_rewards, abs=1e-5)


def unclosed(scorer: Scorer, text: str) -> list[int]:
    return scorer.tokenizer(text, add_special_tokens=False).input_ids


def test_a_text_that_goes_on_is_scored_without_the_end_of_its_turn(scorer: Scorer) -> None:
    beginning, ended = items(scorer, Ask(PROBLEM, [BEGINNING], is_open=True), Ask(PROBLEM, [BEGINNING]))
    assert beginning.step_rewards == rewards(scorer, unclosed(scorer, BEGINNING))
    assert ended.step_rewards == rewards(scorer, BEGINNING) != rewards(scorer, unclosed(scorer, BEGINNING))
    assert beginning.num_tokens == ended.num_tokens - 1


def test_that_holds_beside_responses_that_fail_and_in_a_long_request(scorer: Scorer) -> None:
    texts = [BEGINNING, "1" * PIECE, " ", "7"]
    first, long, blank, last = items(scorer, Ask(PROBLEM, texts, is_open=True))
    assert long.failure and blank.failure
    assert (long.failure.kind, blank.failure.kind) == ("too_long", "empty_response")
    for item, text in ((first, texts[0]), (last, texts[3])):
        assert item.step_rewards == rewards(scorer, unclosed(scorer, text))


@pytest.mark.parametrize("seed", range(3))
def test_the_gateway_searches_by_texts_as_by_tokens(scorer: Scorer, tiny_model: str, seed: int) -> None:
    """Which first steps it goes on from depends on their rewards alone; what is drawn behind them, on which of several
    equal ones comes first."""
    went_on: list[list[str]] = []
    for reading in (frozenset({"demo"}), frozenset[str]()):
        toy = ToySteps(load_tokenizer(tiny_model))
        gateway = Gateway(Whole(), 8, r"(\d+)\s*\Z", 600.0, steps=toy, reads_tokens=reading)
        prm = {"strategy": "beam", "expand": 4}
        body = {"messages": [{"role": "user", "content": PROBLEM}], "best_of": 16, "seed": seed, "prm": prm}
        api = tiny_api({"demo": scorer}, gateway=gateway, max_candidates=16)
        (reply,) = asyncio.run(asked(api, post("/v1/chat/completions", body)))
        assert reply.status_code == 200, reply.text
        went_on.append(sorted(start.text for start in toy.starts if start.text.count("\n") == 1))
    by_tokens, by_texts = went_on
    assert by_tokens == by_texts and len(set(by_tokens)) > 1


def test_a_search_over_the_held_out_problems_says_which_texts_go_on() -> None:
    unit = Unit("p", (5, 6), PROBLEM, "beam", Plan(1), 0)
    found: list[Ask] = []

    class Noting(ScorerWorker):
        async def ask(self, *arguments: Any) -> Any:
            (asks,) = arguments
            found.extend(asks)
            return asks

    async def score(by_text: bool, candidates: Sequence[Candidate]) -> None:
        worker = Noting(lambda: None, by_text)
        await asyncio.gather(*(worker.run(ScoreJob(unit, each)) for each in candidates))

    goes_on, ended = Candidate(0, None, (7,), "1\n"), Candidate(1, None, (8,), "2", finish_reason="stop")
    asyncio.run(score(True, [goes_on, ended]))
    assert found == [Ask(PROBLEM, ["1\n"], is_open=True), Ask(PROBLEM, ["2"])]
