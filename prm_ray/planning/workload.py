"""How much a run has to compute: problems, responses and their lengths, from its settings.

Mean lengths are assumed unless given: those that the paper's operation counts imply, see `core.compute`; of problems
made on the spot those of their worked solutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prm_ray.config import RunConfig
from prm_ray.core.compute import Rollouts
from prm_ray.errors import UserError
from prm_ray.planning.shapes import Shape

_PROMPT, _RESPONSE = 132, 416
"""Mean tokens, where nothing better is known."""
_MARKUP, _CHARACTERS = 13, 4
"""Tokens of a chat template around its texts, and characters of a token of English."""
_LOOKED_AT = 100
"""Made problems whose lengths are averaged."""
STEPS = 10
"""Steps of a response, for step labels."""


@dataclass(frozen=True)
class Workload:
    """Numbers of problems (none = not known before the data is there), responses a problem, and tokens."""

    num_train: int | None
    num_test: int | None
    num_responses: int
    prompt_tokens: float
    response_tokens: float
    longest_prompt: int
    longest_response: int | None
    """None: imported texts have no limit of their own."""

    def longest(self, context: int | None) -> int | None:
        """Most tokens of a prompt with a response, that a model with this context reads."""
        if self.longest_response is None:
            return None
        text = self.longest_prompt + self.longest_response
        return min(text, context) if context else text

    def of(self, num_prompts: float, num_responses: float | None = None) -> Rollouts:
        responses = self.num_responses if num_responses is None else num_responses
        return Rollouts(num_prompts, responses, self.prompt_tokens, self.response_tokens)

    @property
    def wanted_share(self) -> float:
        """Response tokens among those of a pass, prompts being there once."""
        return self.of(1).num_responses * self.response_tokens / self.of(1).tokens(shared_prompt=True)


def workload_of(
    config: RunConfig, shape: Shape, prompt_tokens: float | None = None, response_tokens: float | None = None
) -> Workload:
    """Raises `UserError` for mean lengths that are none, or above the settings' limits."""
    longest_prompt = _least(config.prompt.max_tokens, config.select.max_prompt_tokens)
    sampled = None if config.import_.source else config.generate.max_tokens
    longest_response = _least(sampled, config.select.max_response_tokens)
    num_train, num_test = _problems(config)
    assumed = _assumed(config)
    prompt = _mean("prompt", prompt_tokens, assumed[0], longest_prompt)
    response = _mean("response", response_tokens, assumed[1], longest_response or shape.context)
    return Workload(
        num_train, num_test, config.generate.num_samples, prompt, response, longest_prompt or _PROMPT, longest_response
    )


def trained_on(config: RunConfig, work: Workload) -> Rollouts | None:
    """What `train` reads in one epoch; none = not known. Selections that need the data count as keeping everything."""
    if work.num_train is None:
        return None
    num_prompts = work.num_train * config.select.problem_share
    num_prompts = min(num_prompts, config.select.num_problems or num_prompts)
    responses = min(work.num_responses, config.select.num_responses or work.num_responses)
    return work.of(num_prompts * (1 - config.train.validation_fraction), responses)


def _assumed(config: RunConfig) -> tuple[float, float]:
    """Mean tokens of prompts and responses, where nobody gives any. A digit or a sign is a token."""
    if config.import_.source or config.problems.train != "arithmetic":
        return _PROMPT, _RESPONSE
    from prm_ray.arithmetic import make_problems  # numpy comes with it

    num = min(_LOOKED_AT, config.problems.num_train or _LOOKED_AT)
    made = make_problems(num, "lengths", config.arithmetic)
    prompt = sum(len(each.problem or "") for each in made) / num
    response = sum(len(each.solution or "") for each in made) / num
    return round(prompt + _MARKUP + len(config.prompt.system or "") / _CHARACTERS), round(response + 1)


def _mean(what: str, given: float | None, assumed: float, most: int | None) -> float:
    if given is None:
        return min(assumed, most or assumed)
    if given <= 0 or (most and given > most):
        raise UserError(f"--{what}-tokens {given:g}: must be above 0 and at most {most}, the longest by the settings")
    return given


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _problems(config: RunConfig) -> tuple[int | None, int | None]:
    if config.import_.source:
        return config.import_.num_train, config.import_.num_test
    section = config.problems
    from prm_ray.arithmetic import DEFAULT_NUM_TEST, DEFAULT_NUM_TRAIN

    return (
        _count(section.train, section.num_train, DEFAULT_NUM_TRAIN),
        _count(section.test, section.num_test, DEFAULT_NUM_TEST),
    )


def _count(source: str, limit: int | None, of_arithmetic: int) -> int | None:
    if source == "arithmetic":
        return limit or of_arithmetic
    return _least(_rows(Path(source)), limit)


def _rows(path: Path) -> int | None:
    """Rows of a file that is there."""
    if not path.is_file():
        return None
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    with path.open("rb") as lines:
        return sum(bool(line.strip()) for line in lines)
