"""Which of the responses that a search ended with is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from prm_ray.core.selection import best_of_n, log_vote_weights, majority_vote, weighted_vote
from prm_ray.search.candidate import Candidate
from prm_ray.settings import Pick

PICKS: tuple[Pick, ...] = get_args(Pick)


def pick(ended: Sequence[Candidate], how: Pick) -> Candidate | None:
    """The answer's candidate; None if no response has ended. Those without an answer come behind all that have one."""
    stated = [candidate for candidate in ended if candidate.answer is not None] or list(ended)
    if not stated:
        return None
    values = [candidate.worth() for candidate in stated]
    if how == "best":
        return stated[best_of_n(values)]
    answers = [candidate.answer for candidate in stated]
    if how == "majority":
        return stated[majority_vote(answers)]
    return stated[weighted_vote(answers, np.exp(log_vote_weights(values, "softmax")))]
