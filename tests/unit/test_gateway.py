"""The best-of-N gateway before generators that answer well, late, in part, wrongly or not at all."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from prm_ray.config import parse_config
from prm_ray.scorer import Scorer
from prm_ray.scoring.asks import Item
from prm_ray.serve import app
from prm_ray.serve.asking import Gateway
from prm_ray.serve.dialects.chat import _order
from prm_ray.serve.generator import HttpGenerator
from prm_ray.settings import PromptSection
from tests.serving import asked, post, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"
TEXTS = ["1 + 2 = 3\n3 + 4 = 7", "1 + 2 = 4\n8", "7", "1 + 2 = 3\n7", "9", "0\n7", "6", "1 + 2 = 3\n8"]


class ScriptedGenerator(BaseHTTPRequestHandler):
    """Answers each request as `script` says of the number it has among them."""

    script: Any
    bodies: list[dict[str, Any]]
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            number = len(self.bodies) - 1
        status, reply = type(self).script(number, body)
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the gateway has stopped waiting
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def completion(texts: list[str]) -> dict[str, Any]:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
    usage = {"prompt_tokens": 5, "completion_tokens": 10 * len(texts)}
    return {"model": "generator", "choices": choices, "usage": usage}


def well(number: int, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, completion(TEXTS[4 * number : 4 * number + body["n"]])


@pytest.fixture
def generator() -> Iterator[tuple[type[ScriptedGenerator], str]]:
    handler = type("Handler", (ScriptedGenerator,), {"script": staticmethod(well), "bodies": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


def ask(scorer: Scorer, url: str, seconds: float = 60.0, **body: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        gateway = Gateway(HttpGenerator(url), 8, r"(\d+)\Z", seconds)
        request = {"model": "any", "messages": [{"role": "user", "content": PROBLEM}], **body}
        (reply,) = await asked(tiny_api({"demo": scorer}, gateway=gateway), post("/v1/chat/completions", request))
        return reply

    return asyncio.run(call())


def test_the_best_candidate_by_the_reward_is_the_answer(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    handler, url = generator
    reply = ask(scorer, url, n=2, temperature=0.7, prm={"return_candidates": True, "aggregation": "mean"})
    assert reply.status_code == 200, reply.text
    found = reply.json()
    texts = [each["text"] for each in found["prm_metadata"]["candidates"]]
    assert sorted(texts) == sorted(TEXTS)  # of two requests, whichever the generator took first
    rewards = [each.rewards["mean"] for each in scorer.score(PROBLEM, texts)]
    order = sorted(range(8), key=lambda index: -rewards[index])
    assert [choice["message"]["content"] for choice in found["choices"]] == [texts[index] for index in order[:2]]
    assert found["prm_metadata"]["rewards"] == pytest.approx([rewards[index] for index in order[:2]], abs=1e-5)
    assert [each["reward"] for each in found["prm_metadata"]["candidates"]] == pytest.approx(rewards, abs=1e-5)
    assert found["usage"] == {"prompt_tokens": 10, "completion_tokens": 80, "total_tokens": 90}
    assert [body["n"] for body in handler.bodies] == [4, 4]
    assert all(body["temperature"] == 0.7 and "prm" not in body and not body["stream"] for body in handler.bodies)


def test_no_two_requests_for_candidates_have_the_same_seed(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    """A generator that draws each candidate by the request's seed and its place, as vLLM does, gives none twice."""
    handler, url = generator

    def by_seed(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, completion([str(body["seed"] + place) for place in range(body["n"])])

    handler.script = staticmethod(by_seed)
    found = ask(scorer, url, seed=40, prm={"return_candidates": True}).json()["prm_metadata"]
    assert [body["n"] for body in handler.bodies] == [4, 4]
    assert sorted(each["text"] for each in found["candidates"]) == [str(40 + number) for number in range(8)]


def test_one_users_turn_is_a_problem_and_gets_the_runs_prompt(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    handler, url = generator
    gateway = Gateway(HttpGenerator(url), 4, None, 600.0, PromptSection(system="Calculate."))
    question = {"role": "user", "content": PROBLEM}
    chats = ([question], [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, question])
    calls = [post("/v1/chat/completions", {"messages": chat}) for chat in chats]
    replies = asyncio.run(asked(tiny_api({"demo": scorer}, gateway=gateway), *calls))
    assert [reply.status_code for reply in replies] == [200, 200]
    assert handler.bodies[0]["messages"] == [{"role": "system", "content": "Calculate."}, question]
    assert handler.bodies[1]["messages"] == chats[1]


def test_candidates_with_the_same_answer_may_vote_together(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    """Seven is what four of eight say; its best candidate stands for it."""
    _, url = generator
    found = ask(scorer, url, prm={"vote": "majority", "return_candidates": True}).json()
    sevens = [text for text in TEXTS if text.endswith("7")]
    rewards = {text: each.rewards["min"] for text, each in zip(TEXTS, scorer.score(PROBLEM, TEXTS), strict=True)}
    assert rewards[found["choices"][0]["message"]["content"]] == pytest.approx(max(map(rewards.__getitem__, sevens)))
    assert [each["answer"] for each in found["prm_metadata"]["candidates"]].count("7") == len(sevens) == 4


@pytest.mark.parametrize("strategy", ["best_of_n", "adaptive"])
@pytest.mark.parametrize(
    ("judge", "texts", "answer"),
    [
        ("math", ["Answer: 8", "Answer: 7", "Answer: 8", "Answer: 7.0", "Answer: **7 dollars**"], "7"),
        ("choice", ["Answer: A", "Answer: B", "Answer: A", "Answer: (B)", "Answer: Option B"], "B"),
    ],
)
def test_answers_vote_together_where_the_runs_judge_takes_them_for_one(
    scorer: Scorer,
    generator: tuple[type[ScriptedGenerator], str],
    judge: str,
    texts: list[str],
    answer: str,
    strategy: str,
) -> None:
    handler, url = generator
    waiting = iter(texts)
    handler.script = staticmethod(lambda _, body: (200, completion([next(waiting) for _ in range(body["n"])])))
    gateway = Gateway(HttpGenerator(url), 5, None, 600.0, judge=judge)
    prm = {"vote": "majority", "return_candidates": True, "strategy": strategy}
    request = {"messages": [{"role": "user", "content": PROBLEM}], "prm": prm}
    (reply,) = asyncio.run(asked(tiny_api({"demo": scorer}, gateway=gateway), post("/v1/chat/completions", request)))
    assert reply.status_code == 200, reply.text
    found = reply.json()
    answers = {each["text"]: each["answer"] for each in found["prm_metadata"]["candidates"]}
    assert answers[found["choices"][0]["message"]["content"]] == answer
    assert len(answers) == 4 and len(set(answers.values())) == 2


def test_the_judge_of_the_runs_config_gets_to_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "served_models", lambda config: [])
    monkeypatch.setattr(app, "bind_ingress", lambda settings, scorers: settings)
    monkeypatch.setattr(app, "log_through_serve", lambda: None)
    settings: Any = app.build(parse_config({"label": {"judge": "choice"}, "serve": {"generator": "http://there/v1"}}))
    gateway = app.Ingress(settings, [])._gateway()
    assert gateway is not None and gateway.find_answer("Answer: Option B") == "B"


@pytest.mark.parametrize("vote", ["none", "weighted"])
def test_a_candidate_without_an_answer_comes_behind_all_that_have_one(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str], vote: str
) -> None:
    """As in a run's report. The one with the best reward has none, as if it had been cut at max_tokens."""
    handler, url = generator
    rewards = {text: each.rewards["min"] for text, each in zip(TEXTS, scorer.score(PROBLEM, TEXTS), strict=True)}
    best = max(TEXTS, key=rewards.__getitem__)

    def cut_short(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, completion([best + " +", *(text for text in TEXTS if text != best)][4 * number :][: body["n"]])

    handler.script = staticmethod(cut_short)
    found = ask(scorer, url, n=8, prm={"vote": vote, "return_candidates": True}).json()
    assert found["choices"][-1]["message"]["content"] == best + " +"
    rewards_by_place = found["prm_metadata"]["rewards"]
    assert rewards_by_place[-1] == max(rewards_by_place), "it would be the answer by its reward"


def test_one_without_an_answer_takes_no_weight_from_the_votes_however_good_it_is() -> None:
    """Sums of log-ratios lie far apart: beside a reward of 3 the weights of all answers are 0 in floating point."""
    items = [Item(rewards={"sum": reward}) for reward in (-1002.0, -1000.0, 3.0, -1002.0)]
    assert _order(items, ["a", "b", None, "a"], "sum", "weighted") == [1, 0, 3, 2]


def test_if_no_candidate_has_an_answer_the_best_reward_decides(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    handler, url = generator
    handler.script = staticmethod(lambda number, body: (200, completion([f"{text} +" for text in TEXTS[:4]])))
    rewards = ask(scorer, url, n=4, best_of=4).json()["prm_metadata"]["rewards"]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) > 1


def test_a_stream_ends_as_openais_does(scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]) -> None:
    _, url = generator
    reply = ask(scorer, url, stream=True, stream_options={"include_usage": True})
    *events, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text in TEXTS and done == "[DONE]" and reply.headers["content-type"].startswith("text/event-stream")
    assert chunks[-1]["usage"]["completion_tokens"] == 80 and chunks[-2]["prm_metadata"]["num_candidates"] == 8
    told = tiny_api({"demo": scorer}).openapi()["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert told.keys() == {"application/json", "text/event-stream"}


def test_what_came_in_time_is_used_and_it_is_said(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    handler, url = generator

    released = threading.Event()

    def second_hangs(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number == 1:
            released.wait(600)
        return well(number, body)

    handler.script = staticmethod(second_hangs)
    try:
        found = ask(scorer, url, seconds=5.0).json()
    finally:
        released.set()
    assert (found["prm_metadata"]["num_candidates"], found["prm_metadata"]["num_requested"]) == (4, 8)
    assert found["prm_metadata"]["problems"] == ["the generator took longer than 5 s"]


def test_a_generator_that_gives_fewer_than_it_was_asked_for_is_named(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]
) -> None:
    handler, url = generator

    def one(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        status, reply = well(number, body)
        return status, reply | {"choices": reply["choices"][:1]}

    handler.script = staticmethod(one)
    found = ask(scorer, url).json()["prm_metadata"]
    assert found["problems"] == [f"the generator gave {found['num_candidates']} of 8 candidates"]


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        (lambda number, body: (500, {"error": {"message": "out of memory"}}), 502, "bad_generator"),
        (lambda number, body: (200, {"choices": [7, {"message": 7}], "usage": "7"}), 502, "bad_generator"),
        (lambda number, body: (200, b"<html>"), 502, "bad_generator"),
        (lambda number, body: (200, completion([])), 502, "bad_generator"),
        (lambda number, body: (400, {"error": {"message": "no such model"}}), 400, "refused_by_generator"),
        (lambda number, body: (time.sleep(2), (200, {}))[1], 504, "generator_timeout"),
    ],
)
def test_a_generator_that_fails_is_named_as_the_cause(
    scorer: Scorer, generator: tuple[type[ScriptedGenerator], str], script: Any, status: int, kind: str
) -> None:
    handler, url = generator
    handler.script = staticmethod(script)
    reply = ask(scorer, url, seconds=0.5 if kind == "generator_timeout" else 60.0)
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind), reply.text


def test_a_dead_generator_is_502_at_once_and_none_at_all_404(scorer: Scorer) -> None:
    reply = ask(scorer, "http://127.0.0.1:9/v1")
    assert reply.status_code == 502 and "cannot be reached" in reply.json()["error"]["message"]
    body = {"messages": [{"role": "user", "content": "1"}]}
    (without,) = asyncio.run(asked(tiny_api({"demo": scorer}), post("/v1/chat/completions", body)))
    assert without.status_code == 404 and without.json()["error"]["type"] == "no_generator"


def test_limits_hold_for_candidates_too(scorer: Scorer, generator: tuple[type[ScriptedGenerator], str]) -> None:
    handler, url = generator
    assert ask(scorer, url, n=9).status_code == 413 and not handler.bodies
    too_few = ask(scorer, url, n=4, **{"best_of": 2})
    assert "best_of is 2; it must be at least n, 4" in too_few.json()["error"]["message"]
