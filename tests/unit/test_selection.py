"""Picks and expected accuracies: worked out by hand, and against all subsets counted one by one."""

from itertools import combinations

import numpy as np
import pytest

from prm_ray.core.metrics import pass_at_k
from prm_ray.core.selection import (
    answered_first,
    best_of_n,
    best_of_n_accuracy,
    log_vote_weights,
    majority_vote,
    subsets,
    vote_accuracy,
    vote_picks,
    weighted_vote,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_best_of_n_is_the_highest_and_a_tie_goes_to_the_earlier():
    assert best_of_n([-3.0, 0.5, 0.5, 0.1]) == 1


def test_majority_names_the_first_candidate_with_the_most_frequent_answer():
    assert majority_vote(["7", "8", "8", "7", "8"]) == 1


def test_majority_tie_goes_to_the_answer_seen_first():
    assert majority_vote(["9", "7", "8", "8", "7"]) == 1


def test_candidates_without_an_answer_do_not_vote_unless_nobody_answers():
    assert majority_vote([None, None, None, "4"]) == 3
    assert majority_vote([None, None]) == 0


def test_weighted_vote_adds_up_weights():
    """ "a" has 0.3 + 0.3 = 0.6, "b" 0.5; with 0.7 for "b" it is the other way round."""
    assert weighted_vote(["a", "b", "a"], [0.3, 0.5, 0.3]) == 0
    assert weighted_vote(["a", "b", "a"], [0.3, 0.7, 0.3]) == 1


def test_weights_of_zero_still_beat_no_answer():
    assert weighted_vote([None, "a"], [1.0, 0.0]) == 1


def test_vote_weights_are_sigmoid_and_softmax():
    """sigmoid(0) = 1/2; softmax of (0, ln 3) is 1/4, 3/4."""
    assert np.exp(log_vote_weights([0.0], "sigmoid")) == pytest.approx([0.5])
    assert np.exp(log_vote_weights([0.0, np.log(3)], "softmax")) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("how", ["sigmoid", "softmax"])
def test_vote_survives_rewards_whose_sigmoid_is_zero(how):
    """-1000 against two of -1002: one vote of 1 against two of exp(-2) = 0.135 each."""
    log_weights = log_vote_weights([-1002.0, -1002.0, -1000.0], how)
    assert vote_picks(["a", "a", "b"], log_weights, np.ones((1, 3), dtype=bool))[0] == 2


@pytest.mark.parametrize("how", ["sigmoid", "softmax"])
def test_a_vote_beside_a_far_better_candidate_without_an_answer(how):
    """One vote of 1 against two of 0.135, as small as all of them are beside that of a response that was cut short."""
    rewards = [-1002.0, -1000.0, 3.0, -1002.0]
    picked = vote_picks(["a", "b", None, "a"], log_vote_weights(rewards, how), np.ones((1, 4), dtype=bool))
    assert picked.tolist() == [1]


def test_best_of_two_of_three_by_hand():
    """Ranks: right, wrong, right. Pairs 12 -> right, 13 -> right, 23 -> wrong: 2/3."""
    assert best_of_n_accuracy([3.0, 2.0, 1.0], [True, False, True], 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("n", range(1, 8))
def test_closed_form_of_best_of_n_equals_all_subsets_with_ties_too(n, rng: np.random.Generator):
    rewards, correct = rng.integers(0, 4, size=7).astype(float), rng.random(7) < 0.5
    picks = [chosen[best_of_n(rewards[list(chosen)])] for chosen in combinations(range(7), n)]
    assert best_of_n_accuracy(rewards, correct, n) == pytest.approx(np.mean(correct[picks]))


@pytest.mark.parametrize("n", range(1, 6))
def test_best_of_any_subset_is_the_best_that_has_an_answer_or_else_the_best(n):
    """Imported responses are judged also where no answer was found in them."""
    rewards, answers = np.array([1.0, 8.0, 9.0, 9.0, 2.0]), ["a", None, None, None, "b"]
    correct = np.array([False, False, True, False, True])
    picks = [
        max(chosen, key=lambda index: (answers[index] is not None, rewards[index], -index))
        for chosen in combinations(range(5), n)
    ]
    assert best_of_n_accuracy(answered_first(rewards, answers), correct, n) == pytest.approx(np.mean(correct[picks]))


@pytest.mark.parametrize("n", range(1, 9))
def test_best_of_n_with_a_perfect_scorer_is_pass_at_n_and_with_the_worst_one_all_must_be_right(n):
    correct = np.array([0, 1, 0, 0, 1, 0, 0, 1], dtype=bool)
    assert best_of_n_accuracy(correct.astype(float), correct, n) == pytest.approx(pass_at_k(8, 3, n))
    assert best_of_n_accuracy(-correct.astype(float), correct, n) == pytest.approx(1 - pass_at_k(8, 5, n))


def test_closed_form_holds_for_a_thousand_candidates(rng: np.random.Generator):
    correct = np.arange(1024) < 100
    assert best_of_n_accuracy(np.ones(1024), correct, 1) == pytest.approx(100 / 1024)
    assert best_of_n_accuracy(rng.normal(size=1024), np.ones(1024, dtype=bool), 512) == pytest.approx(1.0)


@pytest.mark.parametrize("n", range(1, 7))
def test_vote_over_a_mask_of_subsets_equals_voting_in_each_of_them(n, rng: np.random.Generator):
    answers = ["a", None, "b", "a", "b", "c"]
    weights = rng.random(6)
    expected = [
        chosen[weighted_vote([answers[i] for i in chosen], weights[list(chosen)])]
        for chosen in combinations(range(6), n)
    ]
    members = subsets(6, n, num_subsamples=1000, rng=rng)
    assert vote_picks(answers, np.log(weights), members).tolist() == expected


def test_an_answer_judged_right_once_is_right_where_the_judgement_of_its_twin_failed():
    members = np.array([[True, False, False]])
    assert vote_accuracy(["5", "5", "6"], [False, True, False], np.zeros(3), members) == 1.0


def test_subsets_are_all_of_them_if_few_and_random_ones_of_the_right_size_if_many(rng: np.random.Generator):
    assert len(subsets(8, 2, 64, rng)) == 28
    many = subsets(64, 16, 300, rng)
    assert many.shape == (300, 64) and (many.sum(axis=1) == 16).all()
    assert many.mean(axis=0) == pytest.approx(np.full(64, 0.25), abs=0.12)


def test_random_subsets_come_close_to_all_subsets(rng: np.random.Generator):
    """12 choose 6 is 924 subsets; 400 random ones agree to a few standard errors (0.5 / 20 = 0.025)."""
    answers = [str(number) for number in rng.integers(0, 4, size=12)]
    correct = np.array([answer == "0" for answer in answers])
    exact = vote_accuracy(answers, correct, np.zeros(12), subsets(12, 6, 10_000, rng))
    sampled = vote_accuracy(answers, correct, np.zeros(12), subsets(12, 6, 400, rng))
    assert sampled == pytest.approx(exact, abs=0.08)


def test_the_order_of_candidates_changes_nothing_when_nothing_is_tied(rng: np.random.Generator):
    answers, rewards = ["a", "b", "a", "c", "b", "a"], rng.normal(size=6)
    correct = np.array([answer == "b" for answer in answers])
    order = rng.permutation(6)
    members = subsets(6, 4, 1000, rng)
    weights = log_vote_weights(rewards, "softmax")
    shuffled = [answers[i] for i in order]
    assert best_of_n_accuracy(rewards[order], correct[order], 4) == pytest.approx(
        best_of_n_accuracy(rewards, correct, 4)
    )
    assert vote_accuracy(shuffled, correct[order], weights[order], members) == pytest.approx(
        vote_accuracy(answers, correct, weights, members)
    )
