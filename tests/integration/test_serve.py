"""The real server over HTTP, with a small untrained model: rewards, limits, refusals, load."""

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.scorer import Scorer
from prm_ray.serve import server
from prm_ray.serve.claim import claim_cluster, give_up_claim
from prm_ray.tables import StageFolder
from tests.processes import wait_until
from tests.servedruns import call, make_run

PROBLEM = "12 + 45 - 8"
RESPONSES = ["12 + 45 = 57\n57 - 8 = 49\nAnswer: 49", "12 + 45 = 58\n58 - 8 = 50\nAnswer: 50", "Answer: 1"]


@pytest.fixture(scope="module")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return make_run(tmp_path_factory.mktemp("run"), max_queued_tokens=2000)


@pytest.fixture(scope="module")
def url(run_config: RunConfig, ray_local: None) -> Iterator[str]:
    """In a Ray that was there before, as a stage in the same process leaves it."""
    yield server.start(run_config)
    server.stop()


@pytest.fixture(scope="module")
def scorer(run_config: RunConfig) -> Scorer:
    return Scorer.from_pretrained(StageFolder(run_config.run.dir, "train").path, dtype="float32")


def test_a_model_that_does_not_load_is_one_line_and_leaves_no_server(tmp_path: Path):
    """Runs before the fixture `url` starts the server that the other tests share."""
    config = make_run(tmp_path)
    (StageFolder(tmp_path, "train").path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"^(the )?model .*load: .*header too large\); copy it there again"):
        server.start(config)
    with pytest.raises(urllib.error.URLError):
        call(f"http://127.0.0.1:{config.serve.port}/healthz")


def test_a_missing_reference_model_is_named_before_anything_starts(tmp_path: Path):
    config = make_run(tmp_path)
    (tmp_path / "reference_model").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"model '.*reference_model' does not exist"):
        server.start(config)


def test_the_served_rewards_are_the_scorers_rewards(url: str, scorer: Scorer):
    reply = call(f"{url}/v1/rewards", {"problem": PROBLEM, "responses": RESPONSES})
    assert reply.status == 200
    for served, ours in zip(reply.body["results"], scorer.score(PROBLEM, RESPONSES), strict=True):
        assert served["rewards"] == pytest.approx(ours.rewards, abs=1e-6)
        assert [step["reward"] for step in served["steps"]] == pytest.approx(ours.step_rewards, abs=1e-6)
        assert [step["text"] for step in served["steps"]] == ours.steps
        assert served["steps"][-1]["prefix_reward"] == pytest.approx(served["rewards"]["sum"], abs=1e-5)


def test_usage_counts_the_prompt_once(url: str, scorer: Scorer):
    body = call(f"{url}/v1/rewards", {"problem": PROBLEM, "responses": RESPONSES}).body
    response_tokens = sum(item["num_tokens"] for item in body["results"])
    assert body["usage"]["total_tokens"] == scorer.prepare(PROBLEM, RESPONSES).num_tokens
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] - response_tokens > 0


def test_a_chat_scores_like_the_problem_it_holds(url: str):
    chat = [{"role": "user", "content": PROBLEM}]
    as_chat = call(f"{url}/v1/rewards", {"messages": chat, "responses": RESPONSES}).body["results"]
    assert as_chat == call(f"{url}/v1/rewards", {"problem": PROBLEM, "responses": RESPONSES}).body["results"]


@pytest.mark.parametrize("aggregation", ["sum", "mean", "min", "last"])
def test_rerank_sorts_by_the_chosen_aggregation(url: str, scorer: Scorer, aggregation: str):
    reply = call(f"{url}/rerank", {"query": PROBLEM, "documents": RESPONSES, "aggregation": aggregation}).body
    rewards = [response.rewards[aggregation] for response in scorer.score(PROBLEM, RESPONSES)]
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    assert [item["index"] for item in reply["results"]] == order
    assert [item["relevance_score"] for item in reply["results"]] == pytest.approx(
        [rewards[i] for i in order], abs=1e-6
    )
    assert [item["document"]["text"] for item in reply["results"]] == [RESPONSES[i] for i in order]
    assert reply["reward"]["aggregation"] == aggregation


def test_the_order_of_candidates_changes_no_reward(url: str):
    forward = call(f"{url}/v1/rewards", {"problem": PROBLEM, "responses": RESPONSES}).body["results"]
    backward = call(f"{url}/v1/rewards", {"problem": PROBLEM, "responses": RESPONSES[::-1]}).body["results"]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert one["rewards"] == pytest.approx(other["rewards"], abs=1e-4)


def test_an_empty_response_has_an_error_and_no_number_and_ranks_last(url: str):
    reply = call(f"{url}/rerank", {"query": PROBLEM, "documents": ["", RESPONSES[0], " \n"]})
    assert reply.status == 200
    assert [item["index"] for item in reply.body["results"]] == [1, 0, 2]
    for item in reply.body["results"][1:]:
        assert item["error"]["type"] == "empty_response"
        assert item["relevance_score"] is None and item["step_rewards"] is None


@pytest.mark.parametrize(
    ("responses", "numbers"),
    [
        (["x"] * 9, ("9 responses", "at most 8")),
        (["1 + 1 = 2\n" * 26] * 8, (" tokens, at most 1600",)),
        (["1 + 1 = 2\n" * 60] * 2, ("response 0 has ", "at most the model's 256")),
    ],
)
def test_too_much_is_413_with_the_numbers(url: str, responses: list[str], numbers: tuple[str, ...]):
    reply = call(f"{url}/v1/rewards", {"problem": PROBLEM, "responses": responses})
    assert reply.status == 413
    assert all(number in reply.body["error"]["message"] for number in numbers)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("v1/rewards", {"problem": PROBLEM}, "responses: Field required"),
        ("v1/rewards", {"problem": PROBLEM, "responses": "one text"}, "responses: Input should be a valid list"),
        ("rerank", {"query": PROBLEM, "documents": ["a"], "aggregation": "best"}, "aggregation: Input should be"),
        ("rerank", {"documents": ["a"]}, "give one of problem (or query), messages and prompt_tokens"),
    ],
)
def test_a_wrong_request_is_422_and_names_the_field(url: str, path: str, body: dict, message: str):
    reply = call(f"{url}/{path}", body)
    assert reply.status == 422
    assert message in reply.body["error"]["message"]


def test_readyz_counts_the_replicas_of_each_model(url: str, run_config: RunConfig):
    assert call(f"{url}/healthz").body == {"status": "ok"}
    assert call(f"{url}/readyz").body == {"status": "ok", "replicas": {run_config.run.dir.name: 1}}


def test_a_request_is_found_by_its_id_in_serves_log_and_counted_in_metrics(url: str, run_config: RunConfig):
    body = json.dumps({"problem": PROBLEM, "responses": RESPONSES}).encode()
    headers = {"Content-Type": "application/json", "X-Request-Id": "find-me-1"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/rewards", body, headers), timeout=240) as reply:
        assert reply.headers.get_all("X-Request-Id") == ["find-me-1"]
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"

    def found() -> list[str]:
        files = (logs / "serve").glob("replica_prm_ray_Ingress_*.log")
        return [line for path in files for line in path.read_text().splitlines() if "find-me-1" in line]

    wait_until(found, 20, "line in the log")  # it is written when the client has its reply
    (line,) = found()
    facts = json.loads(line)
    model = run_config.run.dir.name
    expected = {"method": "POST", "route": "/v1/rewards", "status": 200, "model": model, "candidates": 3, "error": None}
    assert expected.items() <= facts.items() and 0 < facts["compute_seconds"] < facts["seconds"]
    assert PROBLEM not in line
    assert not any("find-me-1" in path.read_text(errors="replace") for path in logs.glob("worker-*")), "on the terminal"
    wait_until(lambda: f'prm_ray_ready_replicas{{model="{model}"}} 1.0' in metrics(url), 60, "number of replicas")
    page = metrics(url)
    assert f'prm_ray_http_requests_total{{model="{model}",route="/v1/rewards",status="200"}}' in page


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:
        page: str = reply.read().decode()
    return page


def test_under_overload_some_are_served_the_rest_are_429_and_health_answers(url: str, scorer: Scorer):
    """One replica, room for one more request, 40 at once; each takes a while because it has eight long responses."""
    body = {"problem": PROBLEM, "responses": [f"{number} = " + "1 + 1 + " * 25 for number in range(8)]}
    healthy = threading.Event()
    with ThreadPoolExecutor(41) as pool:
        replies = [pool.submit(call, f"{url}/v1/rewards", body) for _ in range(40)]
        if call(f"{url}/healthz").status == 200:
            healthy.set()
        statuses = [reply.result() for reply in replies]
    assert healthy.is_set()
    assert {reply.status for reply in statuses} == {200, 429}
    refused = next(reply for reply in statuses if reply.status == 429)
    assert int(refused.headers["retry-after"]) >= 1 and refused.body["error"]["type"] == "overloaded"
    expected = [response.rewards["sum"] for response in scorer.score(PROBLEM, body["responses"])]
    for reply in statuses:
        if reply.status == 200:
            assert [item["rewards"]["sum"] for item in reply.body["results"]] == pytest.approx(expected, abs=1e-4)


def test_a_request_that_serve_ends_itself_has_an_error_like_the_servers_own(url: str):
    body = {"problem": PROBLEM, "responses": RESPONSES}
    reply = httpx.post(f"{url}/v1/rewards", json=body, headers={"X-Request-Timeout-Seconds": "0.000001"}, timeout=120)
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "timeout")


def test_a_port_in_use_is_refused_before_anything_starts(run_config: RunConfig, url: str):
    with pytest.raises(UserError, match=rf"serve.port {run_config.serve.port} cannot be used: Address already in use"):
        server.start(run_config)
    assert call(f"{url}/healthz").status == 200


CLAIM = """
from prm_ray.config import RunConfig
from prm_ray.entry import failing_in_one_line
from prm_ray.serve.claim import claim_cluster
from prm_ray.stages.cluster import start_ray
with failing_in_one_line():
    start_ray(RunConfig())
    claim_cluster(RunConfig())
"""


def test_a_second_server_on_one_cluster_is_refused_until_the_first_has_ended(
    run_config: RunConfig, ray_local: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    claim_cluster(run_config)
    second = subprocess.run([sys.executable, "-c", CLAIM], capture_output=True, text=True)
    assert second.returncode == 2
    what = f"{run_config.run.dir} at {run_config.serve.host}:{run_config.serve.port}"
    assert f"this cluster serves {what} already: stop that first" in second.stderr.splitlines()[-1]
    give_up_claim()
    wait_until(lambda: subprocess.run([sys.executable, "-c", CLAIM], capture_output=True).returncode == 0, 120, "claim")
