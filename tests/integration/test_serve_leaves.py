"""Clients of the real server that do not wait for their answers: what nobody waits for is not computed."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ray import serve

from prm_ray.scoring.asks import Ask, Options
from prm_ray.serve import server
from prm_ray.serve.app import deployment_name
from prm_ray.serve.manifest import APP_NAME
from tests.processes import wait_until
from tests.servedruns import call, make_run

NUM_JOBS = 3000
"""Of one request, each a batch of its own."""
LONG = {
    "queries": [f"{number} + 45 - 8" for number in range(NUM_JOBS)],
    "documents": ["57\n49"] * NUM_JOBS,
}


@contextmanager
def serving(run_dir: Path, timeout_seconds: float) -> Iterator[str]:
    room = {"max_candidates": NUM_JOBS, "max_tokens": 10**6, "max_queued_tokens": 10**6}
    config = make_run(run_dir, timeout_seconds=timeout_seconds, **room)
    url = server.start(config.model_copy(update={"score": config.score.model_copy(update={"token_budget": 1})}))
    try:
        yield url
    finally:
        server.stop()


def num_batches() -> int:
    """That the replica has computed, the one of this very question included."""
    handle = serve.get_deployment_handle(deployment_name(0), APP_NAME)
    scored = handle.score.remote([Ask("1 + 2", ["3"])], Options()).result(timeout_s=120)
    (batch,) = scored.cost.batches
    return batch.number


def test_a_client_that_leaves_costs_nothing_more(tmp_path: Path, ray_local: None) -> None:
    with serving(tmp_path, 600) as url:
        before = num_batches()
        parts, body = urlsplit(url), json.dumps(LONG).encode()
        head = f"POST /score HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
            connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.3)
        small = {"queries": "1 + 2", "documents": "3"}  # may be late while the long one is still encoded
        wait_until(lambda: call(f"{url}/score", small).status == 200, 60, "answer to a small request")
        assert num_batches() - before < 0.9 * NUM_JOBS


def test_a_request_whose_time_is_over_costs_nothing_more(tmp_path: Path, ray_local: None) -> None:
    with serving(tmp_path, 2) as url:  # some of them are computed, by far not all
        before = num_batches()
        assert call(f"{url}/score", LONG).status == 504
        assert num_batches() - before < 0.9 * NUM_JOBS
