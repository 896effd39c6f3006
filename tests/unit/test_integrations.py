"""Reward functions for trainers, called as the trainers call them, against the server over HTTP with a tiny model."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from prm_ray.client import ServerError
from prm_ray.integrations.trl import reward_function
from prm_ray.integrations.verl import compute_score, score_response, write_step_rewards
from prm_ray.scorer import Scorer
from tests.serving import over_http, tiny_api, tiny_scorer

PROBLEMS = ["1 + 2 + 4", "2 + 2"]
TEXTS = ["1 + 2 = 3\n3 + 4 = 7\n", "1 + 2 = 4\nAnswer: 8", "4"]
CHATS = [[{"role": "user", "content": problem}] for problem in PROBLEMS]


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture(scope="module")
def url(scorer: Scorer) -> Iterator[str]:
    with over_http(tiny_api({"demo": scorer})) as url:
        yield url


def expected(scorer: Scorer, problem: Any, text: Any, how: str = "min") -> float:
    (scored,) = scorer.score(problem, [text])
    return scored.rewards[how]


def test_trl_gets_a_reward_each_of_texts_and_of_chats_in_the_order_it_asked(url: str, scorer: Scorer) -> None:
    ask = reward_function(url, aggregation="mean", request_size=1)
    rows = [(0, 0), (1, 2), (0, 1), (1, 0)]
    rewards = [expected(scorer, PROBLEMS[problem], TEXTS[text], "mean") for problem, text in rows]
    chats = [CHATS[problem] for problem, _ in rows]
    plain = ask(prompts=[PROBLEMS[problem] for problem, _ in rows], completions=[TEXTS[text] for _, text in rows])
    chatted = ask(prompts=chats, completions=[turn(TEXTS[text]) for _, text in rows], trainer_state=object())
    assert plain == pytest.approx(rewards, abs=1e-5) and chatted == pytest.approx(rewards, abs=1e-5)


def test_trl_may_send_the_sampled_tokens_and_the_problem_of_a_column(url: str, scorer: Scorer) -> None:
    tokens = [[40, 41, 42], [43]]
    ask = reward_function(url, problem_column="question", with_token_ids=True)
    found = ask(
        prompts=["Solve: 1", "Solve: 2"],
        completions=["?", "?"],
        completion_ids=tokens,
        question=PROBLEMS,
        answer=[3, 4],
    )
    assert found == pytest.approx([expected(scorer, *each) for each in zip(PROBLEMS, tokens, strict=True)], abs=1e-5)


def test_trl_gets_none_and_never_0_for_what_cannot_be_scored(url: str, caplog: pytest.LogCaptureFixture) -> None:
    metrics: dict[str, float] = {}
    extra: dict[str, list[str]] = {}
    completions = ["", TEXTS[0], " \n", "1" * 600]
    found = reward_function(url)(
        prompts=[PROBLEMS[0]] * 3 + [PROBLEMS[1]],  # the last is alone in its request, which is refused as a whole
        completions=completions,
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert [reward is None for reward in found] == [True, False, True, True]
    assert metrics == {"prm_without_reward": 0.75} and "3 of 4 completions have no reward" in caplog.text
    assert [len(json.loads(each)) for each in extra["prm_step_rewards"]] == [0, 2, 0, 0]


def test_trl_asks_in_halves_what_is_too_much_for_one_request(url: str, scorer: Scorer) -> None:
    for texts in (["1 + 2 = 3\n" * 40 + str(row) for row in range(8)], [str(row) for row in range(9)]):
        texts[5] = "1" * 600  # more than the model reads, so it has none in any request
        found = reward_function(url)(prompts=[PROBLEMS[0]] * len(texts), completions=texts)
        assert [row for row, reward in enumerate(found) if reward is None] == [5]
        rewards = [expected(scorer, PROBLEMS[0], text) for row, text in enumerate(texts) if row != 5]
        assert [reward for reward in found if reward is not None] == pytest.approx(rewards, abs=1e-5)


def test_trl_stops_where_the_server_refuses_or_is_not_there(url: str) -> None:
    with pytest.raises(ServerError, match="404 model_not_found"):
        reward_function(url, model="other")(prompts=["1"], completions=["2"])
    with pytest.raises(ServerError, match="ConnectError"):
        reward_function("http://127.0.0.1:9", max_tries=1)(prompts=["1"], completions=["2"])
    with pytest.raises(ValueError, match="2 messages"):
        reward_function(url)(prompts=CHATS[:1], completions=[turn("1") + turn("2")])


def verl_score(problem: str, text: str, **options: Any) -> dict[str, Any]:
    """As verl's reward manager calls it, with what its config has in `reward_kwargs`."""
    return asyncio.run(
        compute_score(
            data_source="openai/gsm8k",
            solution_str=text,
            ground_truth="7",
            extra_info={"question": problem, "index": 3, "num_turns": 2},
            **options,
        )
    )


def test_verl_gets_a_score_and_steps_that_its_arrays_can_hold(url: str, scorer: Scorer) -> None:
    results = [verl_score(PROBLEMS[0], text, url=url, aggregation="sum") for text in TEXTS]
    for result, text in zip(results, TEXTS, strict=True):
        (scored,) = scorer.score(PROBLEMS[0], [text])
        assert result["score"] == pytest.approx(scored.rewards["sum"], abs=1e-5)
        assert json.loads(result["step_rewards"]) == pytest.approx(scored.step_rewards, abs=1e-5)
        assert json.loads(result["step_ends"]) == scored.step_ends
    stacked = {key: np.array([result[key] for result in results]) for key in results[0]}
    assert [array.dtype.kind for array in stacked.values()] == ["f", "U", "i", "U", "U"]


def test_step_rewards_lie_on_the_sampled_tokens_where_steps_end(url: str, scorer: Scorer) -> None:
    tokens = scorer.score(PROBLEMS[0], [TEXTS[0]])[0].tokens
    found = asyncio.run(score_response(PROBLEMS[0], tokens, url=url, aggregation="sum"))
    rows = np.zeros((2, len(tokens) + 3), "float32")
    write_step_rewards(rows[1], found["step_rewards"], found["step_ends"])
    ends = json.loads(found["step_ends"])
    assert rows[1].nonzero()[0].tolist() == [end - 1 for end in ends] and not rows[0].any()
    assert rows[1].sum() == pytest.approx(found["score"], abs=1e-5)
    with pytest.raises(ValueError, match=f"ends at token {len(tokens)}, but the response has room for 2"):
        write_step_rewards([0.0, 0.0], found["step_rewards"], found["step_ends"])


def test_verl_has_no_score_for_a_failure_but_the_one_it_was_given(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRM_RAY_URL", url)
    for text, kind in (("", "empty_response"), ("1" * 600, "too_many_tokens")):
        with pytest.raises(ValueError, match=f"cannot be scored: {kind}"):
            verl_score(PROBLEMS[0], text)
    given = verl_score(PROBLEMS[0], "", score_of_failure=-2.5)
    assert (given["score"], given["step_rewards"]) == (-2.5, "[]") and "empty_response" in given["prm_error"]
    assert given.keys() == verl_score(PROBLEMS[0], "7").keys()
    with pytest.raises(ServerError, match="ConnectError"):
        verl_score("1", "2", url="http://127.0.0.1:9", max_tries=1, score_of_failure=-2.5)


def test_verl_is_told_what_its_config_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRM_RAY_URL", raising=False)
    with pytest.raises(ValueError, match="set it in reward_kwargs, or PRM_RAY_URL"):
        verl_score("1", "2")
    with pytest.raises(ValueError, match="'prompt', the problem; it has question, index, num_turns: set problem_key"):
        verl_score("1", "2", problem_key="prompt")
    with pytest.raises(TypeError, match="agregation"):
        verl_score("1", "2", agregation="min")
