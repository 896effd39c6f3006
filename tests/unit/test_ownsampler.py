"""A sampler of the user's own that returns something else than asked for is told in one line."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from prm_ray.errors import UserError
from prm_ray.stages import ownsampler
from prm_ray.stages.ownsampler import OwnSampler
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions
from prm_ray.stages.threads import Threads

OPTIONS = SamplerOptions("mine:Mine", "", "auto", False, Decoding(2, 1.0, 1.0), 8, 64, 0, Threads(number=1), 0, {})
GOOD = Sample([5, 6], [-0.5, -0.1], "stop")


class Mine:
    answers: Any = None

    def __init__(self, options: SamplerOptions):
        if options.model == "none":
            raise OSError("no such engine")

    async def sample(self, *asked: Any) -> Any:
        return self.answers

    def close(self) -> None:
        """Nothing to stop."""


def sample(monkeypatch: pytest.MonkeyPatch, answers: Any) -> Any:
    monkeypatch.setattr(Mine, "answers", answers)
    monkeypatch.setattr(ownsampler, "find_sampler", lambda name: Mine)
    return asyncio.run(OwnSampler(OPTIONS).sample([[1], [2, 3]], [0, 1]))


def test_what_was_asked_for_goes_through(monkeypatch: pytest.MonkeyPatch):
    empty = Sample([], [], "length")
    assert sample(monkeypatch, [[GOOD, GOOD], [GOOD, empty]]) == [[GOOD, GOOD], [GOOD, empty]]


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        (None, "NoneType, not a list of samples for each prompt"),
        ([[GOOD, GOOD]], "answers to 1 prompts, not 2"),
        ([[GOOD, GOOD], [GOOD]], "1 samples for a prompt, not 2"),
        ([[GOOD, GOOD], None], "NoneType samples for a prompt, not 2"),
        ([[GOOD, GOOD], [GOOD, ([5], [-1.0], "stop")]], "tuple where a Sample must be"),
        ([[GOOD, GOOD], [GOOD, replace(GOOD, logprobs=[-0.5])]], "1 log-probs for 2 tokens"),
        ([[GOOD, GOOD], [GOOD, replace(GOOD, logprobs=None)]], "the log-probs None, which must be"),
        (
            [[GOOD, GOOD], [GOOD, replace(GOOD, logprobs=[-0.5, math.nan])]],
            r"the log-probs \[-0.5, nan\], which must be",
        ),
        ([[GOOD, GOOD], [GOOD, replace(GOOD, tokens=[5, -1])]], r"the tokens \[5, -1\], which must be"),
        ([[GOOD, GOOD], [GOOD, replace(GOOD, finish_reason="eos")]], "'eos', which must be stop or length"),
    ],
)
def test_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch, answers: Any, fault: str):
    with pytest.raises(UserError, match=f"generate.backend 'mine:Mine' returned .*{fault}"):
        sample(monkeypatch, answers)


def test_one_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ownsampler, "find_sampler", lambda name: Mine)
    with pytest.raises(UserError, match="'mine:Mine' cannot be made: OSError: no such engine"):
        OwnSampler(replace(OPTIONS, model="none"))
