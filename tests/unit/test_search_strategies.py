"""What holds for every search strategy, and which plans are refused."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searchtoys import World, hash_of, leading_ones, searched, texts

from prm_ray.search.picking import pick
from prm_ray.search.plan import Plan
from prm_ray.search.strategies import STRATEGIES

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@every_strategy
@pytest.mark.parametrize("failure", ["error", "empty", "no reward", "nan"])
def test_where_everything_fails_a_search_ends_with_nothing_and_keeps_the_reasons(strategy: str, failure: str):
    search = World(leading_ones, fails=lambda text: failure).search()
    assert searched(strategy, search, Plan(8, expand=4)) == []
    assert search.candidates and all(candidate.error for candidate in search.candidates)


@every_strategy
@pytest.mark.parametrize("failure", ["error", "empty", "no reward", "nan"])
def test_a_failure_never_wins(strategy: str, failure: str):
    """What starts with 1 is worth most and fails at its second step; the answer comes from the rest."""

    def fails(text: str) -> str | None:
        return failure if text.startswith("1") and len(text) > 1 else None

    search = World(leading_ones, letters="0123456789", fails=fails).search()
    best = pick(searched(strategy, search, Plan(32, expand=4)), "best")
    assert best is not None and not best.text.startswith("1")
    assert any(candidate.error for candidate in search.candidates)


@every_strategy
def test_a_response_that_never_ends_by_itself_is_cut_and_the_search_ends(strategy: str):
    world = World(leading_ones, letters="1", length=30)
    ended = searched(strategy, world.search(), Plan(8, expand=4))
    assert ended and {candidate.finish_reason for candidate in ended} == {"length"}


@every_strategy
def test_a_search_gives_the_same_texts_however_fast_its_engines_are(strategy: str):
    def result(speed: int) -> tuple[list[str], list[str]]:
        world = World(lambda text: float(hash_of(text)), letters="01234.", length=6, speed=random.Random(speed))
        search = world.search(seed=5)
        ended = searched(strategy, search, Plan(16, expand=4, temperature=50.0))
        return texts(ended), sorted(texts(search.candidates))

    assert len(result(0)[1]) >= 16
    assert result(0) == result(1) == result(2)


@every_strategy
def test_another_seed_gives_other_texts(strategy: str):
    results = [
        texts(searched(strategy, World(leading_ones, letters="0123456789", length=5).search(seed), Plan(8, expand=4)))
        for seed in range(3)
    ]
    assert results[0] != results[1] != results[2]


@every_strategy
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_in_any_world_a_search_ends_with_each_ended_candidate_once(strategy: str, data: st.DataObject):
    expand, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    letters, length = data.draw(st.text("01.", min_size=1, max_size=6)), data.draw(st.integers(1, 6))
    failures, seed = data.draw(st.sampled_from([0, 10, 40, 90])), data.draw(st.integers(0, 1_000))

    def fails(text: str) -> str | None:
        kinds = ("error", "empty", "no reward", "nan")
        return kinds[hash_of(text) % 4] if hash_of(f"{seed} {text}") < failures else None

    world = World(lambda text: hash_of(text) - 50.0, letters, length, fails, random.Random(seed))
    search = world.search(seed)
    plan = Plan(expand * width, expand, lookahead=data.draw(st.integers(1, 3)), temperature=5.0)
    ended = searched(strategy, search, plan)
    assert all(candidate.has_ended and candidate.value is not None for candidate in ended)
    assert sorted(candidate.number for candidate in ended) == [candidate.number for candidate in search.ended]
    assert failures or ended
