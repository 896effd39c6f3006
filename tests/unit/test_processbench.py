"""ProcessBench figures: a perfect and a random scorer, odd rows, and a threshold that no grid would beat."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_ray.core.processbench import ProcessBenchScore, best_threshold, first_below, process_bench_score


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
    """Scores uniform in [0, 1]: t meets a right one of S steps with (1-t)^S, one wrong at k with t(1-t)^k."""
    made, rng = rows(20_000), random.Random(1)
    scores = [[rng.random() for _ in range(steps)] for steps, _ in made]
    labels = [label for _, label in made]
    expected = 0.0
    for threshold in [number / 1000 for number in range(1, 1000)]:
        right = [(1 - threshold) ** steps for steps, label in made if label == -1]
        wrong = [threshold * (1 - threshold) ** label for _, label in made if label != -1]
        one, other = sum(right) / len(right), sum(wrong) / len(wrong)
        expected = max(expected, 2 * one * other / (one + other))
    threshold = best_threshold(scores, labels)
    found = process_bench_score([first_below(each, threshold) for each in scores], labels).f1
    assert found == pytest.approx(expected, abs=0.02) and 0.2 < expected < 0.35


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
