"""Scorer: what a library user gets."""

import math
import re

import pytest

from prm_ray.errors import UserError
from prm_ray.models import load_model, load_tokenizer
from prm_ray.scorer import Scorer
from prm_ray.texts import ScoredResponse

RESPONSES = ["1+2=3\n3+4=7\n\n", "1+2=4", "漢字 🙂\n\n\nxé"]


def scorer_of(tiny_model: str, other_model: str) -> Scorer:
    policy, reference = load_model(tiny_model, "float32"), load_model(other_model, "float32")
    return Scorer(policy, reference, load_tokenizer(tiny_model), beta=0.5, step_rule="newline")


@pytest.fixture
def scored(tiny_model: str, other_tiny_model: str) -> list[ScoredResponse]:
    return scorer_of(tiny_model, other_tiny_model).score("1+2+4", RESPONSES)


def test_policy_equal_to_reference_scores_exactly_zero(tiny_model: str) -> None:
    for response in Scorer.from_pretrained(tiny_model, tiny_model, dtype="float32").score("1+2", RESPONSES):
        assert set(response.token_rewards) == {0.0}
        product = response.rewards.pop("product")
        assert set(response.rewards.values()) == {0.0} and product == pytest.approx(len(response.steps) * math.log(0.5))


def test_step_rewards_add_up_to_the_response_reward(scored: list[ScoredResponse]) -> None:
    for response in scored:
        assert sum(response.step_rewards) == pytest.approx(response.rewards["sum"], abs=1e-6)
        assert sum(response.token_rewards) == pytest.approx(response.rewards["sum"], abs=1e-6)
        assert response.rewards["sum"] != 0.0


def test_steps_join_to_the_text_and_match_the_step_rewards(scored: list[ScoredResponse]) -> None:
    for response, text in zip(scored, RESPONSES, strict=True):
        assert "".join(response.steps) == text
        assert len(response.steps) == len(response.step_rewards) == len(response.step_ends)
    assert scored[0].steps == ["1+2=3\n", "3+4=7\n\n"]


def test_companions_and_order_do_not_change_a_reward(tiny_model: str, other_tiny_model: str) -> None:
    scorer = scorer_of(tiny_model, other_tiny_model)
    together = scorer.score("1+2+4", RESPONSES[::-1])[::-1]
    for text, ours in zip(RESPONSES, together, strict=True):
        (alone,) = scorer.score("1+2+4", [text])
        assert alone.token_rewards == pytest.approx(ours.token_rewards, abs=1e-5)


def test_without_the_reference_a_reward_is_beta_times_the_log_prob_and_one_model_is_loaded(
    tiny_model: str, other_tiny_model: str
) -> None:
    scorer = Scorer.from_pretrained(tiny_model, dtype="float32", beta=0.5, with_reference=False)
    assert scorer.reference is None
    without = scorer.score("1+2+4", RESPONSES)
    assert all(reward < 0 for response in without for reward in response.token_rewards)
    other = Scorer.from_pretrained(other_tiny_model, dtype="float32", beta=0.5, with_reference=False)
    ratios = scorer_of(tiny_model, other_tiny_model).score("1+2+4", RESPONSES)
    for ours, theirs, ratio in zip(without, other.score("1+2+4", RESPONSES), ratios, strict=True):
        assert ours.rewards["sum"] - theirs.rewards["sum"] == pytest.approx(ratio.rewards["sum"], abs=1e-5)


def test_an_empty_response_is_named_not_scored(tiny_model: str) -> None:
    scorer = Scorer.from_pretrained(tiny_model, tiny_model, dtype="float32")
    with pytest.raises(UserError, match="response 1 is empty"):
        scorer.score("1+2", ["3", ""])


def test_a_model_without_a_reference_says_what_is_missing(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"has no prm\.json that names a reference"):
        Scorer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": math.nan}, "beta is nan; it must be a number above 0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"token_budget": 0}, "token_budget is 0; it must be a whole number"),
        ({"cache_tokens": 1.5}, "cache_tokens is 1.5; it must be 0"),
        ({"step_rule": "lines"}, "step rule 'lines' must be blank_line"),
        ({"step_rule": "regex:("}, "no valid regex"),
        ({"dtype": "int8"}, "dtype 'int8' must be one of auto"),
    ],
)
def test_a_wrong_argument_is_named_when_the_scorer_is_made(tiny_model: str, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Scorer.from_pretrained(tiny_model, with_reference=False, **arguments)


@pytest.mark.parametrize(
    ("problem", "responses", "message"),
    [
        ("1+2", "3\n4", "responses is one text"),
        ("1+2", ["3", 4], "response 1 is 4; it must be a text"),
        (None, ["3"], "problem None must be a text, a list of messages"),
        ([], ["3"], "problem [] must be"),
        ([{"role": "user"}], ["3"], "must be a text, a list of messages"),
        ("1+2", ["3", "9" * 600], "together they must be at most the model's 512"),
    ],
)
def test_what_cannot_be_scored_is_named(tiny_model: str, problem: object, responses: object, message: str) -> None:
    scorer = Scorer.from_pretrained(tiny_model, dtype="float32", with_reference=False)
    with pytest.raises(UserError, match=re.escape(message)):
        scorer.score(problem, responses)  # type: ignore[arg-type]
