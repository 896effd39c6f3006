"""Strategies in the gateway: steps of a toy generator or a tiny engine, rewards of a tiny model."""

import asyncio
from typing import Any

import httpx
import pytest

from prm_ray.models import load_tokenizer
from prm_ray.scorer import Scorer
from prm_ray.scoring.asks import Refusal, RefusedError
from prm_ray.search.candidate import Candidate, Draw
from prm_ray.search.strategies import REJECTING, STRATEGIES
from prm_ray.serve.asking import Gateway
from prm_ray.serve.local import LocalBackend
from prm_ray.stages.sampling import Decoding
from tests.gatewaytoys import STEPS, TinyEngine, ToySteps, Whole
from tests.serving import asked, post, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"


ALL = sorted({*STRATEGIES} - {"best_of_n"})


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture
def toy(tiny_model: str) -> ToySteps:
    return ToySteps(load_tokenizer(tiny_model))


def gateway(steps: Any = None, generator: Any = None, seconds: float = 600.0, by_tokens: bool = True) -> Gateway:
    reading = frozenset({"demo"} if by_tokens else ())
    return Gateway(generator or Whole(), 8, r"(\d+)\s*\Z", seconds, steps=steps, reads_tokens=reading)


def body(strategy: str = "beam", **more: Any) -> dict[str, Any]:
    prm = {"strategy": strategy, "return_candidates": True} | more.pop("prm", {})
    prm |= {"reject_below": -1e9} if strategy in REJECTING else {}
    return {"messages": [{"role": "user", "content": PROBLEM}], "best_of": 4, "prm": prm} | more


def replies(scorer: Scorer, through: Gateway, *bodies: dict[str, Any], **limits: Any) -> list[httpx.Response]:
    api = tiny_api({"demo": scorer}, gateway=through, **({"max_candidates": 16} | limits))
    return asyncio.run(asked(api, *(post("/v1/chat/completions", each) for each in bodies)))


def ask(scorer: Scorer, through: Gateway, request: dict[str, Any], **limits: Any) -> httpx.Response:
    return replies(scorer, through, request, **limits)[0]


def error(reply: httpx.Response) -> tuple[int, str, str]:
    found = reply.json()["error"]
    return reply.status_code, found["type"], found["message"]


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("by_tokens", [True, False])
def test_every_strategy_answers_with_its_best_response_and_counts_all_it_sampled(
    scorer: Scorer, toy: ToySteps, strategy: str, by_tokens: bool
) -> None:
    reply = ask(scorer, gateway(toy, by_tokens=by_tokens), body(strategy, n=2))
    assert reply.status_code == 200, reply.text
    found, metadata = reply.json(), reply.json()["prm_metadata"]
    texts = [each["text"] for each in metadata["candidates"]]
    assert texts and all(text.count("\n") == STEPS for text in texts)
    read = [list(toy.tokens[text]) if by_tokens else text for text in texts]
    ours = [each.rewards["min"] for each in scorer.score(PROBLEM, read)]
    assert [each["reward"] for each in metadata["candidates"]] == pytest.approx(ours, abs=1e-5)
    answer = found["choices"][0]["message"]["content"]  # of responses that share their worst step either may be it
    assert ours[texts.index(answer)] == pytest.approx(max(ours), abs=1e-5)
    facts = {"strategy": strategy, "num_drawn": len(toy.starts), "num_ended": len(texts)}
    assert metadata["search"] == facts | {"sampled_tokens": toy.num_sampled}
    assert found["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": toy.num_sampled,
        "total_tokens": 3 + toy.num_sampled,
    }
    assert metadata["problems"] == [] and metadata["num_requested"] == 4 and found["model"] == "toy"


def test_best_of_n_goes_its_old_way_and_its_reply_is_as_it_was(scorer: Scorer, toy: ToySteps) -> None:
    whole = Whole()
    named, unnamed = (
        ask(
            scorer, gateway(toy, whole), {key: value for key, value in body("best_of_n").items() if key not in left_out}
        )
        for left_out in ((), ("prm",))
    )
    assert named.status_code == unnamed.status_code == 200 and not toy.starts
    assert [sent["n"] for sent in whole.bodies] == [4, 4] and all("prm" not in sent for sent in whole.bodies)
    assert "search" not in named.json()["prm_metadata"] and named.json().keys() == unnamed.json().keys()


def test_votes_and_aggregations_choose_among_what_a_search_found(scorer: Scorer, toy: ToySteps) -> None:
    reply = ask(scorer, gateway(toy), body(prm={"vote": "majority", "aggregation": "mean"})).json()
    found = reply["prm_metadata"]["candidates"]
    answers = [each["answer"] for each in found]
    most = max(answers.count(answer) for answer in answers)
    agreeing = [each for each in found if answers.count(each["answer"]) == most]
    assert reply["choices"][0]["message"]["content"] in [each["text"] for each in agreeing]
    means = [sum(each["step_rewards"]) / STEPS for each in found]
    assert [each["reward"] for each in found] == pytest.approx(means, abs=1e-5)


def test_the_searchs_facts_come_in_a_stream_too(scorer: Scorer, toy: ToySteps) -> None:
    reply = ask(scorer, gateway(toy), body(stream=True))
    assert reply.status_code == 200 and '"search": {"strategy": "beam"' in reply.text and "[DONE]" in reply.text


def test_a_generator_of_whole_responses_serves_adaptive_and_says_what_steps_need(scorer: Scorer) -> None:
    whole = Whole()
    reply = ask(scorer, gateway(generator=whole), body("adaptive", seed=7, temperature=0.5))
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert found["usage"] == {
        "prompt_tokens": 5 * len(whole.bodies),
        "completion_tokens": 4 * len(whole.bodies),
        "total_tokens": 9 * len(whole.bodies),
    }
    assert found["model"] == "whole" and len(found["prm_metadata"]["candidates"]) == len(whole.bodies) > 1
    assert all(sent["n"] == 1 and sent["temperature"] == 0.5 and "prm" not in sent for sent in whole.bodies)
    assert len({sent["seed"] for sent in whole.bodies}) == len(whole.bodies), "one seed would give one response"
    for strategy in set(ALL) - {"adaptive"}:
        status, kind, message = error(ask(scorer, gateway(generator=whole), body(strategy)))
        assert (status, kind) == (422, "invalid_request") and "serve.generator=vllm" in message


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        (body(best_of=6), "best_of: 6 must be a multiple of prm.expand, 4, for beam"),
        (body(best_of=4, prm={"expand": 3}), "best_of: 4 must be a multiple of prm.expand, 3"),
        (body(prm={"expand": 0}), "prm.expand: "),
        (body(prm={"lookahead": 2}), "prm: lookahead is for lookahead, not beam"),
        (body("best_of_n", prm={"expand": 4}), "prm: expand is for beam, dvts, lookahead, mcts, not best_of_n"),
        (body(prm={"resample_temperature": 0}), "prm.resample_temperature: "),
        (body(prm={"exploration": -1}), "prm.exploration: "),
        (body("astar"), "prm.strategy: "),
        (body(best_of=0), "best_of: "),
        (body(best_of=4, n=5), "best_of is 4; it must be at least n, 5"),
    ],
)
def test_what_cannot_be_searched_names_the_field(
    scorer: Scorer, toy: ToySteps, request_body: dict[str, Any], named: str
) -> None:
    status, kind, message = error(ask(scorer, gateway(toy), request_body))
    assert (status, kind) == (422, "invalid_request") and message.startswith(named), message
    assert not toy.starts


def test_candidates_are_bounded_by_the_worst_case_before_anything_is_sampled(scorer: Scorer, toy: ToySteps) -> None:
    for strategy, size in (("beam", 20), ("adaptive", 17), ("mcts", 5)):
        status, kind, message = error(ask(scorer, gateway(toy), body(strategy, best_of=size)))
        assert (status, kind) == (413, "too_many_candidates") and "at most 16" in message
    assert not toy.bodies
    assert ask(scorer, gateway(toy), body(best_of=16)).status_code == 200


def test_a_search_that_never_ends_is_cut_at_its_tokens(scorer: Scorer, tiny_model: str) -> None:
    endless = ToySteps(load_tokenizer(tiny_model), max_tokens=10)
    endless.num_steps = 10**9
    status, kind, message = error(ask(scorer, gateway(endless), body(), max_candidates=4))
    assert (status, kind) == (413, "too_many_tokens") and "no more tokens after 40" in message
    assert 40 <= endless.num_sampled < 80


def test_what_has_ended_in_time_is_used_and_it_is_said(scorer: Scorer, toy: ToySteps) -> None:
    async def all_but_two_hang(start: Candidate, draw: Draw) -> None:
        await asyncio.sleep(60 if len(toy.starts) > 2 else 0)

    toy.before = all_but_two_hang
    reply = ask(scorer, gateway(toy, seconds=10.0), body("adaptive"))
    assert reply.status_code == 200, reply.text
    metadata = reply.json()["prm_metadata"]
    assert metadata["num_candidates"] == 2 and metadata["search"]["num_ended"] == 2
    assert metadata["problems"] == ["the search took longer than 10 s; these responses had ended by then"]


@pytest.mark.parametrize("strategy", ALL)
def test_a_search_in_which_nothing_ends_in_time_is_504(scorer: Scorer, toy: ToySteps, strategy: str) -> None:
    async def hang(start: Candidate, draw: Draw) -> None:
        await asyncio.sleep(60)

    toy.before = hang
    assert error(ask(scorer, gateway(toy, seconds=0.3), body(strategy)))[:2] == (504, "generator_timeout")


def test_a_client_that_leaves_ends_the_search(scorer: Scorer, toy: ToySteps) -> None:
    async def a_moment(start: Candidate, draw: Draw) -> None:
        await asyncio.sleep(0.05)

    async def leave() -> tuple[int, int]:
        toy.before, toy.num_steps = a_moment, 10**9
        api = tiny_api({"demo": scorer}, gateway=gateway(toy))
        call = asyncio.create_task(asked(api, post("/v1/chat/completions", body())))
        while len(toy.starts) < 8:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0.1)
        drawn = len(toy.starts)
        await asyncio.sleep(0.5)
        return drawn, len(toy.starts)

    drawn, later = asyncio.run(leave())
    assert later == drawn


@pytest.mark.parametrize("strategy", ALL)
def test_a_dead_generator_and_a_wrong_request_end_a_search_as_they_end_best_of_n(
    scorer: Scorer, toy: ToySteps, strategy: str
) -> None:
    for refusal in (
        Refusal(503, "unavailable", "no replica answers"),
        Refusal(502, "bad_generator", "the generator cannot be reached"),
        Refusal(400, "refused_by_generator", "tools: unknown key"),
    ):

        async def refuse(start: Candidate, draw: Draw, refusal: Refusal = refusal) -> None:
            raise RefusedError(refusal)

        toy.before = refuse
        found = error(ask(scorer, gateway(toy), body(strategy)))
        assert found == (refusal.status, refusal.kind, refusal.message)


def test_a_generator_that_dies_in_the_middle_leaves_what_has_ended(scorer: Scorer, toy: ToySteps) -> None:
    async def die(start: Candidate, draw: Draw) -> None:
        if len(toy.starts) > 2:
            raise RefusedError(Refusal(503, "unavailable", "no replica answers"))

    toy.before = die
    metadata = ask(scorer, gateway(toy), body("adaptive")).json()["prm_metadata"]
    assert metadata["num_candidates"] == 2 and metadata["problems"] == ["no replica answers"]


def test_a_full_queue_makes_a_search_wait_and_does_not_end_it(
    scorer: Scorer, toy: ToySteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, refused = LocalBackend.score, []

    async def full_at_first(self: LocalBackend, *asked: Any) -> Any:
        if len(refused) < 3:
            refused.append(asked)
            raise RefusedError(Refusal(429, "overloaded", "the queue is full", 0))
        return await score(self, *asked)

    monkeypatch.setattr(LocalBackend, "score", full_at_first)
    reply = ask(scorer, gateway(toy), body())
    assert len(refused) == 3 and reply.status_code == 200 and reply.json()["prm_metadata"]["problems"] == []


@pytest.fixture
def engine(tiny_model: str) -> TinyEngine:
    return TinyEngine(tiny_model)


@pytest.mark.parametrize("strategy", ALL)
def test_a_real_engine_is_searched_within_the_requests_own_limits(
    scorer: Scorer, engine: TinyEngine, strategy: str
) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 16, "stop": ["a"], "seed": 5}
    first, again = replies(scorer, gateway(engine), *[body(strategy, **sampling)] * 2)
    assert first.status_code == again.status_code == 200, first.text
    opening = engine.draws[0][0]
    assert opening.decoding == Decoding(1, 0.9, 0.95, ("a",)) and opening.max_tokens == 16
    assert all(len(start.tokens) + len(proposal.tokens) <= 17 for _, start, _, proposal in engine.draws)
    metadata = [reply.json()["prm_metadata"] for reply in (first, again)]
    assert all("a" not in each["text"] for found in metadata for each in found["candidates"])
    sampled = sum(proposal.num_sampled for *_, proposal in engine.draws)
    assert sum(found["search"]["sampled_tokens"] for found in metadata) == sampled
    seeds = [draw.seed for _, start, draw, _ in engine.draws if not start.tokens]
    assert set(seeds[: len(seeds) // 2]) == set(seeds[len(seeds) // 2 :]), "the seed of a request is that of its draws"


def test_the_own_generator_refuses_a_search_as_it_refuses_best_of_n(scorer: Scorer, engine: TinyEngine) -> None:
    status, kind, message = error(ask(scorer, gateway(engine), body(temperature=0)))
    assert (status, kind) == (400, "refused_by_generator") and "temperature 0 makes all candidates equal" in message
    status, kind, message = error(ask(scorer, gateway(engine), body(tools=[])))
    assert (status, kind, message) == (400, "refused_by_generator", "tools: unknown key")
    long = body() | {"messages": [{"role": "user", "content": "1 + " * 600}]}
    assert error(ask(scorer, gateway(engine), long))[:2] == (413, "too_many_tokens")
    one = ask(scorer, gateway(engine), body(temperature=0, best_of=1, max_tokens=12, prm={"expand": 1}))
    assert one.status_code == 200, one.text


def test_the_api_document_says_what_the_options_mean(scorer: Scorer) -> None:
    options = tiny_api({"demo": scorer}).openapi()["components"]["schemas"]["PrmOptions"]["properties"]
    assert "step by step" in options["strategy"]["description"] and "beam" in options["strategy"]["enum"]
    assert all("none = the server's own" in options[name]["description"] for name in ("expand", "exploration"))
