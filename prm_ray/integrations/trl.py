"""A reward function for TRL's `GRPOTrainer` (and others with its signature) that asks a server.

    from prm_ray.integrations.trl import reward_function

    trainer = GRPOTrainer(model=..., reward_funcs=reward_function("http://127.0.0.1:8000"), train_dataset=...)

A completion that cannot be scored has the reward None, which TRL 1.8 and later leave out of the group's baseline.
Earlier releases count it as 0 where no other reward function has a number: do not use them with this one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prm_ray.client import TOO_MUCH, Client, Problem, Response, ResponseReward, ServerError

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., list[float | None]]


def reward_function(
    base_url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    aggregation: str | None = None,
    problem_column: str | None = None,
    with_token_ids: bool = False,
    request_size: int = 32,
    num_threads: int = 8,
    timeout: float = 120.0,
    max_tries: int = 6,
) -> RewardFunction:
    """A function of prompts and completions, texts or chats, that gives a reward each.

    `model` and `aggregation`: none = the server's first, and the model's own. The problem is the prompt, a chat in the
    reward model's template or a plain text in the prompt that it was trained with; or, with `problem_column`, what
    that column of the dataset says. `with_token_ids` sends the sampled tokens in place of their text: exact, where
    the policy reads the reward model's vocabulary. At most `request_size` completions go into one request.

    The function raises `ServerError` if the server does not answer or refuses, so that training stops and not goes
    astray.
    """
    if request_size < 1:
        raise ValueError(f"request_size is {request_size}; it must be at least 1")
    client = Client(base_url, api_key, timeout=timeout, max_tries=max_tries)

    def ask(problem: Problem, responses: Sequence[Response]) -> list[ResponseReward | str]:
        """Of each its reward, or why it has none. What is too much for one request is asked in halves."""
        try:
            return [*client.rewards(problem, responses, model=model, aggregation=aggregation)]
        except ServerError as error:
            if error.status != TOO_MUCH:
                raise
            if len(responses) == 1:
                return [str(error)]
        half = len(responses) // 2
        return [*ask(problem, responses[:half]), *ask(problem, responses[half:])]

    def prm_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        problems = [_problem(each) for each in (columns[problem_column] if problem_column else prompts)]
        if with_token_ids and completion_ids is None:
            raise ValueError("with_token_ids is set, but the trainer gives no completion_ids")
        given = completion_ids if with_token_ids and completion_ids is not None else completions
        requests = _requests(problems, [_response(each) for each in given], request_size)
        found: list[ResponseReward | str] = ["the completion is empty"] * len(problems)
        with ThreadPoolExecutor(num_threads) as pool:
            replies = [pool.submit(ask, problem, list(rows.values())) for problem, rows in requests]
            for (_, rows), reply in zip(requests, replies, strict=True):
                for row, item in zip(rows, reply.result(), strict=True):
                    found[row] = item
        _log(found, columns)
        return [None if isinstance(item, str) else item.reward for item in found]

    return prm_reward


def _problem(prompt: Any) -> Problem:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message["role"], "content": _text(message)} for message in prompt]


def _response(completion: Any) -> Response:
    """A text, the text of a chat's one message, or token ids."""
    if isinstance(completion, str):
        return completion
    completion = list(completion)
    if not completion or not isinstance(completion[0], dict):
        return completion
    if len(completion) > 1:
        raise ValueError(f"a completion has {len(completion)} messages; one turn of the assistant can be scored")
    return _text(completion[0])


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise ValueError(f"a message has the content {str(content)[:80]!r}; it must be a text")
    return content


def _requests(
    problems: Sequence[Problem], responses: Sequence[Response], size: int
) -> list[tuple[Problem, dict[int, Response]]]:
    """(problem, row -> response): what is of one problem goes together, for the server computes it once."""
    groups: dict[str, list[int]] = {}
    for row, (problem, response) in enumerate(zip(problems, responses, strict=True)):
        if response:
            groups.setdefault(json.dumps(problem), []).append(row)
    return [
        (problems[rows[0]], {row: responses[row] for row in rows[start : start + size]})
        for rows in groups.values()
        for start in range(0, len(rows), size)
    ]


def _log(found: Sequence[ResponseReward | str], columns: dict[str, Any]) -> None:
    """Why rewards are missing; and step rewards into the trainer's table of completions, where it has one."""
    errors = [item if isinstance(item, str) else item.error for item in found]
    reasons = [error for error in errors if error is not None]
    if reasons:
        logger.warning("%d of %d completions have no reward, the first: %s", len(reasons), len(found), reasons[0])
    if (log_metric := columns.get("log_metric")) is not None:
        log_metric("prm_without_reward", len(reasons) / len(found))
    if (log_extra := columns.get("log_extra")) is not None:
        steps = [[] if isinstance(item, str) else [step.reward for step in item.steps] for item in found]
        log_extra("prm_step_rewards", [json.dumps([round(reward, 4) for reward in rewards]) for rewards in steps])
