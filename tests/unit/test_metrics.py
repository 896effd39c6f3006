"""pass@k, AUC, step hits and bootstrap intervals: by hand, by enumeration, and by simulation."""

from itertools import combinations

import numpy as np
import pytest

from prm_ray.core.metrics import (
    auc,
    difference_interval,
    first_error_hit,
    pass_at_k,
    percentile_interval,
    ratio_interval,
    resample_means,
    within_problem_auc,
)

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("num_correct", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_one(num_correct, k):
    hits = [min(chosen) < num_correct for chosen in combinations(range(6), k)]
    assert pass_at_k(6, num_correct, k) == pytest.approx(np.mean(hits))


def test_pass_at_k_does_not_overflow():
    """One right in 10,000: the chance that it is among 5,000 is a half."""
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


def test_auc_equals_counting_pairs_ties_as_a_half():
    scores, labels = RNG.integers(0, 5, size=40), RNG.random(40) < 0.4
    right, wrong = scores[labels], scores[~labels]
    pairs = [1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_auc_needs_both_classes():
    assert auc([1.0, 2.0], [True, True]) is None
    assert auc([2.0, 1.0], [True, False]) == 1.0


def test_auc_within_problems_ignores_which_problem_is_easy():
    """Problem 1: AUC 1 over 1 pair. Problem 2: AUC 1/2 over 2 pairs. Problem 3 has one class only.

    Mean 3/4; by pairs (1 * 1 + 2 * 1/2) / 3 = 2/3. Adding 100 to problem 2 changes nothing.
    """
    problems = [([1, 0], [1, 0]), ([102, 101, 100], [0, 1, 0]), ([5, 6], [1, 1])]
    within = within_problem_auc(problems)
    assert within.mean == pytest.approx(3 / 4)
    assert within.pair_weighted == pytest.approx(2 / 3)
    assert (within.num_problems, within.num_pairs) == (2, 3)
    assert within.per_problem == (1.0, 0.5, None)


def test_auc_within_problems_without_any_mixed_problem_is_undefined():
    within = within_problem_auc([([1, 2], [True, True])])
    assert within.mean is None and within.pair_weighted is None


def test_first_error_is_hit_by_the_lowest_step():
    assert first_error_hit([0.1, -2.0, 0.3, 0.0], first_wrong=1) == (1.0, 0.25)
    assert first_error_hit([0.1, -2.0, 0.3, 0.0], first_wrong=2) == (0.0, 0.25)


def test_an_untrained_model_whose_steps_are_all_zero_hits_by_chance_only():
    assert first_error_hit([0.0, 0.0, 0.0], first_wrong=0) == pytest.approx((1 / 3, 1 / 3))


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    """200 experiments of 80 coin tosses with chance 0.3: 95 % of 200 is 190, standard deviation 3."""
    covered = 0
    for seed in range(200):
        tosses = (np.random.default_rng(seed).random((80, 1)) < 0.3).astype(float)
        interval = percentile_interval(tosses.mean(), resample_means(tosses, 500, seed)[:, 0])
        covered += interval.low <= 0.3 <= interval.high
    assert 178 <= covered <= 199


def test_bootstrap_is_the_same_for_the_same_seed_and_has_the_right_width():
    """Standard error of 400 tosses at 1/2 is 0.025, so the interval is about 4 * 0.025 wide."""
    tosses = np.tile([[0.0], [1.0]], (200, 1))
    resampled = resample_means(tosses, 4000, seed=3)
    assert np.array_equal(resampled, resample_means(tosses, 4000, seed=3))
    interval = percentile_interval(0.5, resampled[:, 0])
    assert interval.high - interval.low == pytest.approx(3.92 * 0.025, rel=0.1)


def test_differences_and_ratios_are_paired():
    """B is right wherever A is and twice as often: the ratio is 2 in every resample, however much A itself varies."""
    values = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 6.0]] * 20)
    resampled = resample_means(values, 300, seed=0)
    ratio = ratio_interval(*values.mean(axis=0)[::-1], resampled[:, 1], resampled[:, 0])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    same = difference_interval(1.0, 1.0, resampled[:, 0], resampled[:, 0])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_difference_of_equals_is_exactly_0_whatever_the_order_of_their_sums():
    """0.1 + 0.2 - 0.3 is 5.6e-17 in floating point: with a bound above 0 one would count as better than itself."""
    values = np.array([[0.1, 0.2, 0.3], [0.7, 0.1, 0.8], [0.0, 0.0, 0.0]] * 10)
    one_R, two_R, both_R = resample_means(values, 200, seed=0).T
    assert not np.array_equal(one_R + two_R, both_R)
    for ours_R, theirs_R in ((one_R + two_R, both_R), (both_R, one_R + two_R)):
        difference = difference_interval(0.1 + 0.2, 0.3, ours_R, theirs_R)
        assert str((difference.value, difference.low, difference.high)) == "(0.0, 0.0, 0.0)", "and not -0.0"


def test_ratio_to_zero_is_undefined_not_infinite():
    zeros = np.zeros(10)
    assert ratio_interval(0.5, 0.0, zeros + 0.5, zeros).value is None


def test_resampling_in_chunks_keeps_every_resample(monkeypatch):
    monkeypatch.setattr("prm_ray.core.metrics._MAX_RESAMPLED_NUMBERS", 64)
    assert resample_means(np.ones((10, 2)), 101, seed=0) == pytest.approx(np.ones((101, 2)))
