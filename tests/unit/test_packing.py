"""Packing: however responses are put together, each gets the log-probs it has alone."""

import random

import pytest
import torch

from prm_ray.core.packing import PromptGroup, pack
from prm_ray.models import load_model
from prm_ray.scorer import group_logprobs


def random_groups(seed: int) -> list[PromptGroup]:
    rng = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [rng.randrange(3, 60) for _ in range(rng.randint(1, most))]

    return [PromptGroup(tokens(12), [tokens(9) for _ in range(rng.randint(1, 5))]) for _ in range(4)]


@pytest.mark.parametrize("token_budget", [1, 25, 1000])
def test_packed_log_probs_equal_those_of_each_response_alone(tiny_model: str, token_budget: int) -> None:
    model, groups = load_model(tiny_model, "float32"), random_groups(token_budget)
    packed = group_logprobs(model, groups, token_budget)
    for group, logprobs in zip(groups, packed, strict=True):
        for response, ours in zip(group.responses, logprobs, strict=True):
            ids = torch.tensor([[*group.prompt, *response]])
            with torch.no_grad():
                table = model(ids).logits[0, len(group.prompt) - 1 : -1].log_softmax(dim=1)
            alone = table.gather(1, torch.tensor(response)[:, None]).squeeze(1)
            torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)


def test_order_of_groups_and_responses_changes_nothing(tiny_model: str) -> None:
    model, groups = load_model(tiny_model, "float32"), random_groups(7)
    turned = [PromptGroup(group.prompt, group.responses[::-1]) for group in groups[::-1]]
    forward, backward = group_logprobs(model, groups, 60), group_logprobs(model, turned, 60)
    for ours, theirs in zip(forward, backward[::-1], strict=True):
        for one, other in zip(ours, theirs[::-1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("token_budget", [1, 20, 50, 500])
def test_every_response_is_packed_once_and_the_budget_holds_where_it_can(token_budget: int) -> None:
    groups = random_groups(3)
    batches = pack(groups, token_budget)
    branches = sorted(branch for batch in batches for branch in batch.branches)
    assert branches == [(g, r) for g, group in enumerate(groups) for r in range(len(group.responses))]
    for batch in batches:
        assert batch.input_ids_GT.numel() <= token_budget or len(batch.branches) == 1


def test_the_prompt_is_in_a_row_once() -> None:
    (batch,) = pack([PromptGroup([1, 2, 3], [[4], [5], [6, 7]])], token_budget=100)
    assert batch.input_ids_GT.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids_GT.tolist() == [[0, 1, 2, 3, 3, 3, 4]]


@pytest.mark.parametrize("group", [([], [[1]]), ([1], [[]])])
def test_empty_prompts_and_responses_are_refused(group: tuple[list[int], list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PromptGroup(*group)


def test_a_long_tree_does_not_make_the_rows_of_shorter_ones_long() -> None:
    """Attention costs the square of a row's length; short trees still share rows."""
    groups = [PromptGroup([1] * 100, [[2] * 900]), *(PromptGroup([1] * 100, [[2] * 300]) for _ in range(4))]
    groups += [PromptGroup([1] * 20, [[2] * 30]) for _ in range(5)]
    shapes = sorted(tuple(batch.input_ids_GT.shape) for batch in pack(groups, token_budget=2000))
    assert shapes == [(1, 250), (1, 1000), (4, 400)]
