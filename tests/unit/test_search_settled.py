"""When an answer is settled: the error level by simulation over laws of answers and votes, and what it must respect."""

import numpy as np
import pytest

from prm_ray.core.selection import log_vote_weights, weighted_vote
from prm_ray.search.settled import outlook

N, FIRST, TRIALS = 16, 3, 200
LAWS = {
    "flat": np.ones(10) / 10,
    "peaked": np.array([0.7, 0.1, 0.1, 0.05, 0.05]),
    "two equal rivals": np.array([0.5, 0.5]),
    "three equal rivals": np.ones(3) / 3,
    "long tail": np.arange(1, 60) ** -1.1 / (np.arange(1, 60) ** -1.1).sum(),
}
VOTES = {
    "equal votes": (0.0, 0.0),
    "votes that know nothing": (1.0, 0.0),
    "votes that know the right answer": (1.0, 1.5),
}


def sampled(law_A, spread, lift, rng):
    """Answers and values of N responses; the values of the first answer are `lift` higher."""
    answers_N = rng.choice(len(law_A), N, p=law_A / law_A.sum())
    return [str(answer) for answer in answers_N], spread * rng.standard_normal(N) + lift * (answers_N == 0)


def leader(answers, values):
    return answers[weighted_vote(answers, np.exp(log_vote_weights(values, "softmax")))]


def changed_after_stop(answers, values, error):
    """(stopped before N, with another answer than all N vote for), looking after every response."""
    for n in range(FIRST, N):
        if outlook(answers[:n], values[:n], N - n).is_settled(error):
            return True, leader(answers[:n], values[:n]) != leader(answers, values)
    return False, False


@pytest.mark.parametrize("votes", VOTES)
@pytest.mark.parametrize("law", LAWS)
def test_answers_called_settled_change_at_most_at_the_stated_level(law, votes):
    error, rng = 0.1, np.random.default_rng([len(law), len(votes)])
    changed = [changed_after_stop(*sampled(LAWS[law], *VOTES[votes], rng), error)[1] for _ in range(TRIALS)]
    noise = 2 * np.sqrt(error * (1 - error) / TRIALS)
    assert np.mean(changed) <= error + noise


def test_a_peaked_law_is_settled_early_nearly_always():
    rng = np.random.default_rng(0)
    stopped = [changed_after_stop(*sampled(LAWS["peaked"], 0.5, 0.5, rng), 0.1)[0] for _ in range(100)]
    assert np.mean(stopped) > 0.9


def test_all_responses_settle_whatever_they_say():
    assert outlook(["a", "b"], [0.0, 0.0], 0).is_settled(0.001)


def test_five_equal_answers_of_sixteen_are_settled_and_three_against_one_are_not():
    assert outlook(["a"] * 5, [0.0] * 5, 11).is_settled(0.05)
    assert not outlook(["a", "a", "b", "a"], [0.0] * 4, 12).is_settled(0.05)


def test_votes_are_relative():
    answers, values = ["a", "b", "a", None], np.array([-1.0, -0.25, -1.5, -3.0])
    assert outlook(answers, values, 12) == outlook(answers, values + 1000, 12)


def test_a_vote_that_outweighs_the_others_makes_its_answer_the_safer_one():
    answers = ["a", "b", "a", "b"]
    assert outlook(answers, [2.0, 0.0, 2.0, 0.0], 12).change < outlook(answers, [0.1, 0.0, 0.1, 0.0], 12).change


def test_responses_without_an_answer_leave_all_open():
    assert outlook([None] * 4, [0.0] * 4, 12).change > 0.2
    assert outlook([None] * 12, [0.0] * 12, 4).gain < outlook([None] * 4, [0.0] * 4, 12).gain


def test_values_of_responses_without_an_answer_are_not_read():
    values = np.array([0.3, 0.0, -500.0])
    assert outlook(["a", "b", None], values, 13) == outlook(["a", "b", None], values + np.array([0, 0, 1000]), 13)


def test_two_answers_close_together_gain_more_from_further_responses_than_a_settled_one():
    assert outlook(["a", "b"] * 4, [0.0] * 8, 8).gain > outlook(["a"] * 7 + ["b"], [0.0] * 8, 8).gain


def test_a_change_to_another_answer_of_many_scattered_ones_is_worth_less_than_it_is_likely():
    scattered = outlook(list("abcdefgh"), [0.0] * 8, 8)
    assert scattered.gain < scattered.change / 3


def test_votes_beyond_any_float_still_have_an_outlook():
    """As `best` has them: one response outweighs all below it."""
    with np.errstate(all="raise", under="ignore"):
        sharp = outlook(list("aabcdefg"), np.arange(8) * -400.0, 8)
    assert 0 < sharp.change < 1 and 0 < sharp.gain <= sharp.change
