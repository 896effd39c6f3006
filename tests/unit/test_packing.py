"""Packing: however responses are put together, each gets the log-probs it has alone."""

import random

import pytest
import torch

from prm_ray.core.packing import PromptGroup, pack
from prm_ray.models import load_model
from prm_ray.scorer import group_values


def random_groups(seed: int) -> list[PromptGroup]:
    rng = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [rng.randrange(3, 60) for _ in range(rng.randint(1, most))]

    return [PromptGroup(tokens(12), [tokens(9) for _ in range(rng.randint(1, 5))]) for _ in range(4)]


@pytest.mark.parametrize("token_budget", [1, 25, 1000])
def test_packed_log_probs_equal_those_of_each_response_alone(tiny_model: str, token_budget: int) -> None:
    model, groups = load_model(tiny_model, "float32"), random_groups(token_budget)
    packed = group_values(model, groups, token_budget)
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
    forward, backward = group_values(model, groups, 60), group_values(model, turned, 60)
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
        assert len(batch.input_ids_T) <= token_budget or len(batch.branches) == 1


def test_every_shared_token_is_there_once() -> None:
    """Both prompts start with 1, two responses with 4: depth first, a token's position is that in its own text."""
    groups = [PromptGroup([1, 2, 3], [[6, 7], [4, 5], [4], [6, 7]]), PromptGroup([1, 9], [[8]])]
    (batch,) = pack(groups, token_budget=100)
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 9, 8]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 1, 2]
    assert [(node.start, node.stop, node.end) for node in batch.nodes] == [
        (0, 1, 9),
        (1, 3, 7),
        (3, 4, 5),
        (4, 5, 5),
        (5, 7, 7),
        (7, 9, 9),
    ]
    assert batch.target_U.tolist() == [4, 5, 6, 7, 8]
    assert batch.predictor_U.tolist() == [2, 3, 2, 5, 7]


def test_an_empty_response_has_no_log_probs_and_disturbs_nobody(tiny_model: str) -> None:
    model = load_model(tiny_model, "float32")
    ((empty, ours),) = group_values(model, [PromptGroup([3, 4], [[], [5, 6]])], 100)
    ((alone,),) = group_values(model, [PromptGroup([3, 4], [[5, 6]])], 100)
    assert empty.tolist() == []
    torch.testing.assert_close(ours, alone)
    (((nothing,)),) = group_values(model, [PromptGroup([3, 4], [[]])], 100)
    assert nothing.tolist() == []


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PromptGroup([], [[1]])
