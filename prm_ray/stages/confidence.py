"""Step labels from drops in an outcome verifier's confidence: AutoPSV (arXiv 2405.16802).

The verifier learnt from outcome labels alone, in another run; its value at the end of a step is the chance it sees that
the response will be right. No response is sampled for this: it costs one pass of the verifier over the responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.core.rewards import prefix_values, step_rewards
from prm_ray.core.steplabels import confidence_labels
from prm_ray.errors import UserError
from prm_ray.headscorer import HeadScorer
from prm_ray.models import check_vocabularies, read_prm_json, resolve_model
from prm_ray.rewardmodels import HEADS
from prm_ray.scorer import Scorer
from prm_ray.stages.groups import group_rows
from prm_ray.stages.threads import set_threads

StepValues = Callable[[Sequence[PromptGroup], Sequence[Sequence[Sequence[int]]]], list[list[list[float]]]]
"""(groups, the S step ends of each of their responses) -> S values of each, in [0, 1]: the chance of a right answer."""


def check_verifier(config: RunConfig) -> None:
    """Raises `UserError` if the verifier is no checkpoint of ours, of a kind that has no values, or reads other ids."""
    verifier = str(config.step_label.verifier)
    facts = read_prm_json(resolve_model(verifier))
    if facts.get("reward", "log_ratio") not in _LOADERS:
        raise UserError(
            f"step_label.verifier {verifier!r} was trained with reward {facts['reward']!r}; "
            f"it must be one of {', '.join(_LOADERS)}"
        )
    check_vocabularies(verifier, resolve_model(config.model.name), config.model.trust_remote_code)


def load_step_values(config: RunConfig) -> StepValues:
    """The verifier's values: the one place that knows what kinds of verifiers there are."""
    facts = read_prm_json(str(config.step_label.verifier))
    return _LOADERS[facts.get("reward", "log_ratio")](config)


def _implicit_prm(config: RunConfig) -> StepValues:
    """f_t = sigmoid(q_t), q_t the prefix value: over a whole response this is what cross-entropy has trained."""
    section = config.step_label
    scorer = Scorer.from_pretrained(
        str(section.verifier),
        dtype=config.model.dtype,
        token_budget=section.token_budget,
        with_reference=read_prm_json(str(section.verifier)).get("trained_with_reference", True),
        trust_remote_code=config.model.trust_remote_code,
    )

    def step_values(
        groups: Sequence[PromptGroup], step_ends: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        return [
            [
                torch.tensor(prefix_values(step_rewards(token_rewards_T, ends))).sigmoid().tolist()
                for token_rewards_T, ends in zip(rewards, ends_of_group, strict=True)
            ]
            for rewards, ends_of_group in zip(scorer.score_tokens(groups), step_ends, strict=True)
        ]

    return step_values


def _head(config: RunConfig) -> StepValues:
    """f_t = sigmoid of the logit at the end of step t."""
    section = config.step_label
    scorer = HeadScorer.from_pretrained(
        str(section.verifier),
        dtype=config.model.dtype,
        token_budget=section.token_budget,
        trust_remote_code=config.model.trust_remote_code,
    )

    def step_values(
        groups: Sequence[PromptGroup], step_ends: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        return [
            [torch.tensor(logits_S).sigmoid().tolist() for logits_S in of_group]
            for of_group in scorer.step_logits(groups, step_ends)
        ]

    return step_values


_LOADERS: dict[str, Callable[[RunConfig], StepValues]] = {"log_ratio": _implicit_prm, **dict.fromkeys(HEADS, _head)}
"""`reward` of the verifier's prm.json -> what loads it."""


class ConfidenceLabeller:
    """Adds the labels; rows of one problem must come in one call.

    What the verifier saw before the first step is not asked of it, for heads are read at the ends of steps only. It is
    taken to be the mean of what it sees behind the first step of the problem's responses: of a sound chance, the mean
    over what may come next is the chance before it. So a problem's only response has no drop at its first step.
    """

    def __init__(self, config: RunConfig, step_values: StepValues | None = None):
        """`step_values` in place of those of the config's verifier, which is then not loaded."""
        self._num_workers = config.step_label.num_workers
        self._threshold = config.step_label.threshold
        self._step_values = step_values or load_step_values(config)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, int]:
        """Fill `step_labels` of the rows; return the counts for the manifest."""
        set_threads(self._num_workers)
        grouped = group_rows(rows)
        groups = [group for _, group in grouped]
        step_ends = [[rows[number]["step_ends"] for number in numbers] for numbers, _ in grouped]
        for (numbers, _), values in zip(grouped, self._step_values(groups, step_ends), strict=True):
            before = sum(values_S[0] for values_S in values) / len(values)
            for number, values_S in zip(numbers, values, strict=True):
                rows[number]["step_labels"] = confidence_labels(values_S, before, self._threshold)
        tokens = sum(len(group.prompt) + sum(map(len, group.responses)) for group in groups)
        return {"verifier_tokens": tokens}
