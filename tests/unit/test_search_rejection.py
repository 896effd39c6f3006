"""Early rejection: the conformal threshold keeps its level, and hopeless responses cost only the steps they took."""

import asyncio

import numpy as np
import pytest

from prm_ray.errors import UserError
from prm_ray.search.candidate import Proposal, Reward
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.rejection import Rejection, best_of_n_rejecting, calibrate


def staircase(values_by_response):
    """A problem whose k-th response has the k-th list of step values; every step is 5 tokens."""
    begun = iter(range(len(values_by_response)))

    async def propose(start, draw):
        which = start.text.split(":")[0] if start.text else str(next(begun))
        step = len(start.tokens) // 5 + 1
        ends = step == len(values_by_response[int(which)]) or draw.whole
        text = f"{which}:{'answer' if ends else ''}"
        return Proposal((1,) * 5, text, finish_reason="stop" if ends else None, num_sampled=5)

    async def score(candidate):
        values = values_by_response[int(candidate.text.split(":")[0])]
        value = values[min(len(candidate.tokens) // 5, len(values)) - 1]
        return Reward((value,), value)

    return ProblemSearch(propose, score, seed=0)


def rejecting(values_by_response, threshold):
    search, rejection = staircase(values_by_response), Rejection(threshold)
    ended = asyncio.run(best_of_n_rejecting(search, Plan(len(values_by_response)), rejection))
    return search, rejection, ended


def test_a_hopeless_response_costs_only_the_steps_before_it_was_dropped():
    search, rejection, ended = rejecting([[0, 0, 0], [0, -9, 0], [-9, 0, 0]], threshold=-1.0)
    assert [candidate.text for candidate in ended] == ["0:answer"]
    assert search.num_sampled == (3 + 2 + 1) * 5
    assert len(rejection.dropped) == 2


def test_a_response_that_falls_only_with_its_last_step_is_kept():
    _, rejection, ended = rejecting([[0, 0, -9], [0, 0, 0]], threshold=-1.0)
    assert len(ended) == 2 and not rejection.dropped


def test_if_all_are_hopeless_the_best_of_them_goes_on():
    search, rejection, ended = rejecting([[-3, 0], [-2, 0], [-4, 0]], threshold=-1.0)
    assert [candidate.text for candidate in ended] == ["1:answer"]
    assert len(rejection.dropped) == 2 and search.num_sampled == 4 * 5


def test_a_threshold_below_all_values_is_plain_best_of_n():
    search, rejection, ended = rejecting([[0, -5, -9], [0, -1, -2]], threshold=-np.inf)
    assert len(ended) == 2 and not rejection.dropped and search.num_sampled == 6 * 5


def test_the_threshold_is_the_lowest_prefix_of_the_right_response_whose_rank_the_level_says():
    """19 right ones with lowest prefixes 1 to 19: 10 % of 20 is the 2nd; wrong ones and whole responses do not."""
    values = [[n + 0.5, float(n), -100.0] for n in range(1, 20)] + [[-50.0, 0.0]]
    assert calibrate(values, [True] * 19 + [False], 0.1) == 2.0


def test_responses_of_one_step_are_never_dropped_and_count_as_highest():
    assert calibrate([[-7.0], [1.0, 0.0], [2.0, 0.0]], [True] * 3, 0.5) == 2.0


@pytest.mark.parametrize("lost_right", [0.05, 0.2])
@pytest.mark.parametrize("num_right", [25, 200])
def test_right_responses_are_lost_at_most_at_the_stated_level(lost_right, num_right):
    """Random walks of 2 to 8 steps, a new calibration each time: the guarantee is over both."""
    rng = np.random.default_rng(num_right)

    def responses(count):
        return [list(np.cumsum(rng.standard_t(3, rng.integers(2, 9)))) for _ in range(count)]

    lost = []
    for _ in range(400):
        threshold = calibrate(responses(num_right), [True] * num_right, lost_right)
        lost.append(np.mean([min(values[:-1]) < threshold for values in responses(50)]))
    error = 2 * np.std(lost) / np.sqrt(len(lost))
    assert np.mean(lost) <= lost_right + error
    assert np.mean(lost) >= lost_right - 1 / (num_right + 1) - 2 * error


@pytest.mark.parametrize(
    ("values", "correct", "lost_right", "message"),
    [
        (
            [[0.0, 0.0]] * 9,
            [True] * 9,
            0.05,
            "search.lost_right 0.05: must be at least 0.1, for there are 9 right responses",
        ),
        ([], [], 0.05, "search.lost_right 0.05: must be at least 1, for there are 0 right responses"),
        ([[0.0, 0.0]] * 9, [True] * 9, 1.5, "search.lost_right 1.5: must be between 0 and 1"),
        ([[np.nan, 0.0]] * 9, [True] * 9, 0.5, "a prefix value of a calibration response is nan"),
    ],
)
def test_a_level_that_the_responses_cannot_give_is_refused_in_a_line(values, correct, lost_right, message):
    with pytest.raises(UserError, match=f"^{message}") as raised:
        calibrate(values, correct, lost_right)
    assert "\n" not in str(raised.value)
