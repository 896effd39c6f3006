"""`compute_score` for verl's reward loop: the reward of a response, from a server.

    reward.custom_reward_function.path=pkg://prm_ray.integrations.verl
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000

verl stacks what a reward function returns beside `score` into numpy arrays, and averages the numbers in it over its
validation set. So the lists of a response's steps come as JSON texts, which it carries along as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from prm_ray.client import TOO_MUCH, AsyncClient, Problem, Response, ResponseReward, ServerError


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    *,
    problem_key: str = "question",
    **options: Any,
) -> dict[str, Any]:
    """The result of `score_response` for the problem in `extra_info[problem_key]`; its options are this one's, too.

    `data_source`, `ground_truth` and the two of verl's own reward models are not used.
    """
    problem = (extra_info or {}).get(problem_key)
    if not isinstance(problem, str):
        known = ", ".join(extra_info or {}) or "nothing"
        raise ValueError(f"extra_info has no text {problem_key!r}, the problem; it has {known}: set problem_key")
    return await score_response(problem, solution_str, **options)


async def score_response(
    problem: Problem,
    response: Response,
    *,
    url: str | None = None,
    api_key: str | None = None,
    model: str | None = None,
    aggregation: str | None = None,
    score_of_failure: float | None = None,
    timeout: float = 120.0,
    max_tries: int = 6,
) -> dict[str, Any]:
    """`score` and, as JSON texts, `step_rewards` [S] and `step_ends` [S], token offsets into the response.

    Text is tokenized by the server; give token ids where the policy reads the reward model's vocabulary, and the
    offsets are those of the sampled tokens. `url` and `api_key`: none = the environment's PRM_RAY_URL and
    PRM_RAY_API_KEY. A response that cannot be scored (too long, empty) raises `ValueError`, for verl has no place for
    a missing reward; unless a `score_of_failure` is given for it, then `prm_error` says why it has that. A server that
    does not answer, or refuses, raises `ServerError` in any case.
    """
    url = url or os.environ.get("PRM_RAY_URL")
    if not url:
        raise ValueError("url is not given; set it in reward_kwargs, or PRM_RAY_URL in the environment")
    api_key = api_key or os.environ.get("PRM_RAY_API_KEY")
    client = _client(asyncio.get_running_loop(), url, api_key, timeout, max_tries)
    try:
        (found,) = await client.rewards(problem, [response], model=model, aggregation=aggregation)
    except ServerError as error:
        if error.status != TOO_MUCH:
            raise
        found = ResponseReward(0, None, {}, [], 0, f"{error.kind}: {error.message}")
    return _result(found, score_of_failure)


@lru_cache(maxsize=8)
def _client(
    loop: asyncio.AbstractEventLoop, url: str, api_key: str | None, timeout: float, max_tries: int
) -> AsyncClient:
    """One for all trajectories of a worker; its connections belong to the loop."""
    return AsyncClient(url, api_key, timeout=timeout, max_tries=max_tries)


def _result(found: ResponseReward, score_of_failure: float | None) -> dict[str, Any]:
    """The same keys for every response: verl looks for those of the first one in all."""
    score = found.reward if found.reward is not None else score_of_failure
    if score is None:
        raise ValueError(f"the response cannot be scored: {found.error}")
    return {
        "score": score,
        "prm_error": found.error or "",
        "num_steps": len(found.steps),
        "step_rewards": json.dumps([step.reward for step in found.steps]),
        "step_ends": json.dumps(found.step_ends),
    }


def write_step_rewards(row: Any, step_rewards: str | Sequence[float], step_ends: str | Sequence[int]) -> None:
    """Write step rewards [S] into one response's row of `rm_scores` (a tensor, an array or a list), at the steps' ends.

    The row is as long as the longest response of its batch; the rest of it is left as it is. Raises `ValueError` if a
    step ends behind the row: then its tokens are not those that were scored.
    """
    rewards, ends = (json.loads(each) if isinstance(each, str) else each for each in (step_rewards, step_ends))
    if ends and ends[-1] > len(row):
        raise ValueError(f"the last step ends at token {ends[-1]}, but the response has room for {len(row)}")
    for reward, end in zip(rewards, ends, strict=True):
        row[end - 1] = reward
