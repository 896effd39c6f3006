"""The whole server with keys and a generator of its own, real vLLM, through the official openai client."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import read_prm_json, write_prm_json
from prm_ray.scorer import Scorer
from prm_ray.search.strategies import STRATEGIES
from prm_ray.serve import server
from prm_ray.serve.keys import new_key
from prm_ray.serve.manifest import manifest
from prm_ray.serve.searchlimits import TAKEN_BY
from prm_ray.tables import StageFolder
from tests.servedruns import call, make_run

MESSAGES: Any = [{"role": "user", "content": "What is 12 + 45?"}]


@dataclass
class Server:
    config: RunConfig
    url: str
    keys: Path
    key: str

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("run")
    key, line = new_key("tests")
    keys = folder / "keys"
    keys.write_text(line + "\n")
    config = make_run(
        folder, generator="vllm", best_of=4, max_candidates=64, api_keys_file=keys, generator_timeout_seconds=600
    )
    checkpoint = StageFolder(folder, "train").path
    # an untrained model hardly ever writes a newline, and in one of thirty searches no space either
    write_prm_json(checkpoint, read_prm_json(checkpoint) | {"step_rule": "regex:[ aeiou]"})
    yield Server(config, server.start(config), keys, key)
    server.stop()


@pytest.fixture(scope="module")
def scorer(served: Server) -> Scorer:
    return Scorer.from_pretrained(StageFolder(served.config.run.dir, "train").path, dtype="float32")


def best_first(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that say `the answer is` and go on come first."""
    return sorted(candidates, key=lambda each: (each["answer"] is None, -each["reward"]))


def test_without_keys_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    config = make_run(tmp_path, host="0.0.0.0")
    with pytest.raises(UserError, match=r"serve.host '0\.0\.0\.0' is reached .*serve.api_keys_file must name"):
        server.start(config)


def test_the_best_of_four_by_the_reward_answers(served: Server, scorer: Scorer) -> None:
    reply = served.client().chat.completions.create(
        model="any", messages=MESSAGES, n=2, max_tokens=12, extra_body={"prm": {"return_candidates": True}}
    )
    metadata = reply.prm_metadata  # type: ignore[attr-defined]
    texts = [each["text"] for each in metadata["candidates"]]
    assert len(texts) == metadata["num_requested"] == 4 and len(set(texts)) > 1
    ours = [each.rewards["sum"] for each in scorer.score(MESSAGES, texts)]
    assert [each["reward"] for each in metadata["candidates"]] == pytest.approx(ours, abs=1e-4)
    best = best_first(metadata["candidates"])[:2]
    assert metadata["rewards"] == [each["reward"] for each in best]
    assert reply.choices[0].message.content == best[0]["text"]
    assert reply.usage is not None and 4 < reply.usage.completion_tokens <= 48


def test_the_answer_streams(served: Server) -> None:
    stream = served.client().chat.completions.create(
        model="any", messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() and chunks[-1].usage is not None
    assert chunks[-2].prm_metadata["num_candidates"] == 4  # type: ignore[attr-defined]


def test_what_the_generator_cannot_do_is_named(served: Server) -> None:
    create = served.client().chat.completions.create
    with pytest.raises(openai.BadRequestError, match="temperature 0 makes all candidates equal"):
        create(model="any", messages=MESSAGES, temperature=0)
    with pytest.raises(openai.BadRequestError, match="tools: unknown key"):
        create(model="any", messages=MESSAGES, tools=[])
    greedy = create(model="any", messages=MESSAGES, temperature=0, max_tokens=30, extra_body={"best_of": 1})
    whole = greedy.choices[0].message.content
    assert whole is not None and " " in whole.strip()
    cut = create(model="any", messages=MESSAGES, temperature=0, max_tokens=30, stop=" ", extra_body={"best_of": 1})
    assert cut.choices[0].message.content == whole[: whole.index(" ")] and cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {"best_of_n"}))
def test_every_strategy_answers(served: Server, strategy: str) -> None:
    prm: dict[str, Any] = {"strategy": strategy, "return_candidates": True}
    prm |= {"expand": 2} if strategy in TAKEN_BY["expand"] else {}
    prm |= {"reject_below": -1e9} if strategy in TAKEN_BY["reject_below"] else {}
    create = served.client().chat.completions.create
    reply = create(model="any", messages=MESSAGES, max_tokens=8, extra_body={"best_of": 4, "prm": prm})
    metadata = reply.prm_metadata  # type: ignore[attr-defined]
    candidates, search = metadata["candidates"], metadata["search"]
    assert search["strategy"] == strategy and search["num_ended"] == len(candidates) and not metadata["problems"]
    assert [sum(each["step_rewards"]) for each in candidates] == pytest.approx([each["reward"] for each in candidates])
    assert metadata["rewards"] == [best_first(candidates)[0]["reward"]]
    assert reply.choices[0].message.content in [each["text"] for each in candidates]
    assert reply.usage is not None and reply.usage.completion_tokens == search["sampled_tokens"]
    if strategy != "adaptive":
        assert search["num_drawn"] > search["num_ended"] and any(len(each["steps"]) > 1 for each in candidates)


def test_keys_are_asked_for_and_come_and_go_while_the_server_runs(served: Server) -> None:
    body = {"problem": "1 + 2", "responses": ["3"]}
    rewards = f"{served.url}/v1/rewards"
    assert call(rewards, body).status == 401 and call(rewards, body, "prm-wrong").status == 401
    assert call(rewards, body, served.key).status == 200
    assert call(f"{served.url}/healthz").status == call(f"{served.url}/readyz").status == 200
    old = served.keys.read_text()
    key, line = new_key("second")
    served.keys.write_text(old + line + "\n")
    assert _status_becomes(200, rewards, body, key)
    served.keys.write_text(old)
    assert _status_becomes(401, rewards, body, key)
    assert call(rewards, body, served.key).status == 200


def test_the_manifest_deploys_over_the_running_application(served: Server, scorer: Scorer) -> None:
    """As `serve deploy` does it, this time without a generator: nobody is turned away meanwhile."""
    section = served.config.serve.model_copy(update={"generator": None, "max_candidates": 2})
    described = manifest(served.config.model_copy(update={"serve": section}))
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(described))
    three = {"problem": "1 + 2", "responses": ["3", "4", "5"]}
    give_up = time.monotonic() + 400
    while (status := call(f"{served.url}/v1/rewards", three, served.key).status) == 200:
        assert time.monotonic() < give_up, serve.status()
    assert status == 413, serve.status()
    reply = call(f"{served.url}/v1/rewards", {"problem": "1 + 2", "responses": ["3"]}, served.key)
    assert reply.status == 200
    assert reply.body["results"][0]["rewards"] == pytest.approx(scorer.score("1 + 2", ["3"])[0].rewards, abs=1e-4)


def _status_becomes(status: int, url: str, body: Any, key: str, seconds: float = 30.0) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if call(url, body, key).status == status:
            return True
        time.sleep(0.2)
    return False
