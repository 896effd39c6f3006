"""ProcessBench figures: a perfect and a random scorer, odd rows, and a threshold that no grid would beat."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_ray.core.processbench import (
    ProcessBenchScore,
    best_threshold,
    best_uniform_threshold,
    first_below,
    mean_f1,
    process_bench_score,
    resampled_scores,
    step_scores,
    uniform_score,
)


def rows(number: int, seed: int = 0) -> list[tuple[int, int]]:
    """(steps, label): half without a wrong step, the others wrong at any step alike."""
    rng = random.Random(seed)
    made = []
    for _ in range(number):
        steps = rng.randint(1, 8)
        made.append((steps, -1 if rng.random() < 0.5 else rng.randrange(steps)))
    return made


def test_a_perfect_scorer_has_an_f1_of_one() -> None:
    scores = [[-1.0 if step == label else 1.0 for step in range(steps)] for steps, label in rows(500)]
    labels = [label for _, label in rows(500)]
    threshold = best_threshold(scores, labels)
    assert process_bench_score([first_below(each, threshold) for each in scores], labels) == ProcessBenchScore(1, 1, 1)


def test_a_random_scorer_is_about_as_good_as_the_best_way_to_guess() -> None:
    """Scores uniform in [0, 1], against what they reach on average; half of the solutions have no wrong step."""
    made, rng = rows(20_000), random.Random(1)
    scores = [[rng.random() for _ in range(steps)] for steps, _ in made]
    num_steps, labels = (list(column) for column in zip(*made, strict=True))
    expected = uniform_score(num_steps, labels, best_uniform_threshold(num_steps, labels))
    assert expected.f1 is not None and 0.2 < expected.f1 < 0.35
    threshold = best_threshold(scores, labels)
    found = process_bench_score([first_below(each, threshold) for each in scores], labels)
    assert found.f1 == pytest.approx(expected.f1, abs=0.02)
    fixed = process_bench_score([first_below(each, 0.1) for each in scores], labels)
    at_a_tenth = uniform_score(num_steps, labels, 0.1)
    assert fixed.error_accuracy == pytest.approx(at_a_tenth.error_accuracy, abs=0.02)
    assert fixed.correct_accuracy == pytest.approx(at_a_tenth.correct_accuracy, abs=0.02)


def test_protocols_by_hand() -> None:
    """Two steps of 2 and 1 tokens; the empty one in the middle ends where the first does."""
    rewards, ends = [-1.0, 0.0, 0.4], [2, 2, 3]
    assert step_scores(rewards, ends, "step") == rewards
    assert step_scores(rewards, ends, "prefix") == pytest.approx([-1.0, -1.0, -0.6])
    assert step_scores(rewards, ends, "prefix_mean") == pytest.approx([-0.5, -0.5, -0.2])
    with pytest.raises(ValueError, match="protocol 'sum' must be one of prefix, step, prefix_mean"):
        step_scores(rewards, ends, "sum")


def test_intervals_hold_the_figure_and_narrow_with_more_solutions() -> None:
    """Right ones met half of the time, wrong ones a quarter: F1 = 2 * 1/2 * 1/4 / (3/4) = 1/3."""
    widths = []
    for number in (20, 500):
        labels = [-1, -1, 0, 0, 0, 0] * number
        predictions = [-1, 0, 0, 1, 1, 1] * number
        draws = resampled_scores(predictions, labels, 500, seed=0)
        interval = mean_f1([process_bench_score(predictions, labels).f1], [draws["f1"]])
        assert interval.value == pytest.approx(1 / 3) and interval.low is not None and interval.high is not None
        assert interval.low < 1 / 3 < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0] / 5, rel=0.3)


def test_a_mean_needs_the_f1_of_every_subset() -> None:
    assert mean_f1([0.5, None], []).value is None


def test_f1_by_hand() -> None:
    """Wrong ones: 1 of 3 named; right ones: 1 of 2 left alone; 2 * 1/3 * 1/2 / (5/6) = 0.4."""
    assert process_bench_score([0, 1, -1, -1, 2], [0, 2, 1, -1, -1]) == ProcessBenchScore(
        pytest.approx(0.4), pytest.approx(1 / 3), 0.5
    )


def test_a_subset_of_one_kind_has_no_f1() -> None:
    assert process_bench_score([-1, 0], [-1, -1]) == ProcessBenchScore(None, None, 0.5)
    assert process_bench_score([], []) == ProcessBenchScore(None, None, None)
    with pytest.raises(ValueError, match="needs responses with a wrong step and responses without one"):
        best_threshold([[1.0]], [-1])


def test_responses_of_one_step_or_none_are_no_special_case() -> None:
    assert first_below([], 0.0) == -1
    assert best_threshold([[], [0.0], [1.0]], [-1, 0, -1]) == 0.5


def test_a_label_that_is_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="label 2 must be -1 or a step of 2"):
        best_threshold([[0.0, 1.0], [1.0]], [2, -1])


@given(
    st.lists(
        st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=4).flatmap(
            lambda scores: st.tuples(st.just(scores), st.integers(-1, len(scores) - 1))
        ),
        min_size=2,
        max_size=12,
    ).filter(lambda made: len({label == -1 for _, label in made}) == 2)
)
def test_no_threshold_is_better(made: list[tuple[list[float], int]]) -> None:
    scores, labels = (list(column) for column in zip(*made, strict=True))

    def f1(threshold: float) -> float:
        return process_bench_score([first_below(each, threshold) for each in scores], labels).f1 or 0.0

    assert f1(best_threshold(scores, labels)) == pytest.approx(max(f1(number / 2) for number in range(-10, 12)))
