"""Whatever the forest and the budget: log-probs, gradients, order and token counts, on random forests."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm_ray.core import forest as forest_module
from prm_ray.core.forest import ForestAttention
from prm_ray.core.packing import PackedBatch, PromptGroup, pack
from tests.exactness import alone, gradients, largest_difference, tiny, together, worst_gradient_error

LARGE = 1 << 20
EXACT = 1e-4
few = settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=100)
blocks = st.sampled_from([1, 4, 16, 128])
budgets = st.one_of(st.integers(1, 120), st.just(LARGE))


@cache
def model() -> Any:
    return tiny("llama", num_hidden_layers=2)


@st.composite
def forests(draw: st.DrawFn) -> list[PromptGroup]:
    """Texts put together from a few pieces: so prompts and responses often share beginnings, repeat or contain another.

    A prompt may be another prompt with a part of its response behind it; responses may be empty or one token.
    """
    pieces = draw(st.lists(st.lists(st.integers(3, 12), min_size=1, max_size=9), min_size=1, max_size=5))
    joined = st.lists(st.sampled_from(pieces), max_size=4).map(
        lambda parts: [token for part in parts for token in part]
    )
    groups: list[PromptGroup] = []
    for _ in range(draw(st.integers(1, 5))):
        prompt = draw(joined) or [draw(st.integers(3, 12))]
        if groups and draw(st.booleans()):
            earlier = draw(st.sampled_from(groups))
            inside = draw(st.sampled_from([[], *earlier.responses]))
            prompt = [*earlier.prompt, *inside[: draw(st.integers(0, 9))]]
        groups.append(PromptGroup(prompt, draw(st.lists(joined, max_size=6))))
    return groups


def whole_texts(groups: Sequence[PromptGroup]) -> list[tuple[int, ...]]:
    return [(*group.prompt, *response) for group in groups for response in group.responses]


def ancestors(batch: PackedBatch) -> torch.Tensor:
    """Who sees whom, the slow way: the parent of a token is the last one before it that is one position less deep."""
    seen = torch.zeros(len(batch.input_ids_T), len(batch.input_ids_T), dtype=torch.int64)
    last_at: dict[int, int] = {}
    for token, position in enumerate(batch.position_ids_T.tolist()):
        if position:
            seen[token] = seen[last_at[position - 1]]
        seen[token, token] = 1
        last_at[position] = token
    return seen


@few
@given(forests(), budgets, blocks)
def test_log_probs_and_gradients_are_those_of_one_text_at_a_time(groups: Any, budget: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest_module, "BLOCK", block)
        ours, expected = together(model(), groups, budget), alone(model(), groups)
        if any(len(values) for values in expected.values()):
            assert largest_difference(ours, expected) < EXACT
            assert worst_gradient_error(gradients(model(), ours), gradients(model(), expected)) < EXACT


@few
@given(forests(), budgets, st.randoms(use_true_random=False))
def test_no_order_of_prompts_and_candidates_changes_anything(groups: Any, budget: int, rng: Any) -> None:
    order = rng.sample(range(len(groups)), len(groups))
    inner = [rng.sample(range(len(group.responses)), len(group.responses)) for group in groups]
    turned = [PromptGroup(groups[g].prompt, [groups[g].responses[r] for r in inner[g]]) for g in order]
    with torch.no_grad():
        before, after = together(model(), groups, budget), together(model(), turned, budget)
    assert len(before) == len(after)
    for (group, response), values in after.items():
        was = before[order[group], inner[order[group]][response]]
        assert torch.equal(values, was)  # texts are sorted first, so not even rounding differs


@many
@given(forests(), budgets)
def test_every_response_token_comes_back_once_and_the_budget_holds(groups: Any, budget: int) -> None:
    batches = pack(groups, budget)
    found = Counter(branch for batch in batches for branch in batch.branches)
    assert found == Counter((g, r) for g, group in enumerate(groups) for r in range(len(group.responses)))
    for batch in batches:
        assert len(batch.input_ids_T) <= budget or len(batch.branches) == 1
        wanted = [token for g, r in batch.branches for token in groups[g].responses[r]]
        assert batch.target_U[batch.source_R].tolist() == wanted
        assert batch.lengths == [len(groups[g].responses[r]) for g, r in batch.branches]


@many
@given(forests())
def test_each_distinct_prefix_is_computed_once(groups: Any) -> None:
    prefixes = {text[:end] for text in whole_texts(groups) for end in range(1, len(text) + 1)}
    assert sum(len(batch.input_ids_T) for batch in pack(groups, LARGE)) == len(prefixes)


@many
@given(forests(), budgets, blocks)
def test_each_query_meets_each_ancestor_in_one_segment_and_nobody_else(groups: Any, budget: int, block: int) -> None:
    for batch in pack(groups, budget):
        forest = ForestAttention(batch.nodes, len(batch.input_ids_T), torch.device("cpu"))
        met = torch.zeros(forest.num_tokens, forest.num_tokens, dtype=torch.int64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forest_module, "BLOCK", block)
            runs = forest.runs
        done = torch.zeros(forest.num_tokens, dtype=torch.int64)
        for run in runs:
            queries = slice(run[0].start, run[-1].end)
            assert sum(each.end - each.start for each in run) == queries.stop - queries.start
            assert done[queries].eq(run[0].depth).all()  # and so a merge is with all that came before
            done[queries] += 1
        for each in [each for run in runs for each in run]:
            queries, keys = slice(each.start, each.end), slice(each.start, each.stop)
            mask = forest.mask(each, torch.float32)
            causal = torch.ones(each.end - each.start, each.stop - each.start, dtype=torch.int64).tril()
            met[queries, keys] += causal if mask is None else mask.eq(0)
        assert torch.equal(met, ancestors(batch))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_token_ids_come_as_any_sequence_and_may_be_large(kind: Any) -> None:
    prompt, responses = [70_000, 5, 262_143], [[1 << 17, 70_000], [1 << 17, 65_535], [2**31 - 1]]
    (batch,) = pack([PromptGroup(kind(prompt), [kind(response) for response in responses])], 100)
    assert sorted(batch.input_ids_T.tolist()) == sorted([*prompt, 1 << 17, 70_000, 65_535, 2**31 - 1])
    assert batch.branches == [(0, 1), (0, 0), (0, 2)]  # in the order of their ids, also beyond two bytes


def test_a_token_id_that_no_vocabulary_has_is_refused() -> None:
    for wrong in (-1, 2**31, 1.5):
        with pytest.raises(ValueError, match="token id"):
            pack([PromptGroup([3, 4], [[5, wrong]])], 100)
