"""Tree search in toy worlds: what it expands, and that it always answers."""

from collections import Counter

import pytest
from searchtoys import ScriptedWorld, World, hash_of, searched, texts

from prm_ray.search.plan import Plan


def test_tree_search_concentrates_on_the_better_branch():
    """Every text that starts with "1" is worth 1, any other 0."""
    world = World(lambda text: float(text.startswith("1")), length=12)
    searched("mcts", world.search(), Plan(40, expand=4, exploration=0.5))
    asked = Counter(text[0] for text, _ in world.asked if text)
    assert asked["1"] > 4 * asked["0"] > 0


def test_exploration_visits_the_worse_branch_more_often():
    def visits_of_the_worse(exploration: float) -> int:
        world = World(lambda text: float(text.startswith("1")), length=12)
        searched("mcts", world.search(), Plan(40, expand=4, exploration=exploration, descents=1))
        return sum(text.startswith("0") for text, _ in world.asked)

    assert visits_of_the_worse(0.0) == 0 < visits_of_the_worse(0.5) < visits_of_the_worse(5.0)


def test_tree_search_leaves_a_trap_as_soon_as_it_saw_it():
    """ "t" is expanded first and turns out bad; the next expansion is that of "g", and all others are behind it."""
    children = {"": "tg", "t": "x", "g": "x", "tx": "x", "gx": "x", "gxx": "x"}
    values = {"t": 5, "g": 1, "tx": -9, "gx": 6, "gxx": 6}
    world = ScriptedWorld(children=children, values=values)
    searched("mcts", world.search(), Plan(5, expand=2, exploration=0.0, descents=1))
    assert [text for text, _ in world.asked][::2] == ["", "t", "g", "gx", "gxx"]


def test_tree_search_does_not_depend_on_the_scale_of_values():
    def asked(scale: float) -> list[tuple[str, int]]:
        world = World(lambda text: scale * (hash_of(text) - 100), length=8)
        searched("mcts", world.search(), Plan(20, expand=3))
        return [(text, draw.seed) for text, draw in world.asked]

    assert asked(1.0) == asked(1 / 1024) == asked(1024.0)


def test_descents_at_the_same_time_expand_different_leaves():
    world = World(lambda text: float(text.count("1")), letters="01234567", length=9)
    searched("mcts", world.search(), Plan(21, expand=4, descents=5))
    asked = Counter(text for text, draw in world.asked if text and not draw.whole)
    assert set(asked.values()) == {4} and len(asked) == 20


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tree_search_always_has_an_answer(size: int):
    """So few expansions reach no end of 40 steps; then the best leaves are finished, here those with a 1."""
    world = World(lambda text: float(text.startswith("1")), length=40)
    ended = searched("mcts", world.search(), Plan(size, expand=2))
    assert ended and all(candidate.has_ended and len(candidate.text) == 40 for candidate in ended)


def test_tree_search_finishes_the_next_leaves_if_the_best_cannot_be_finished():
    def fails(text: str) -> str | None:
        return "error" if len(text) == 5 and text[0] != "3" else None

    world = World(lambda text: -float(text[0]), letters="0123", length=5, fails=fails)
    ended = searched("mcts", world.search(3), Plan(1, expand=12))
    assert ended and {text[0] for text in texts(ended)} == {"3"}


def test_tree_search_ends_when_nothing_is_left_to_expand():
    """The tree has 3 open nodes, so 3 expansions of 2, whatever the size."""
    world = ScriptedWorld(children={"": "ab", "a": "cd", "b": "ef"})
    ended = searched("mcts", world.search(), Plan(1_000, expand=2))
    assert sorted(texts(ended)) == ["ac", "ad", "be", "bf"]
    assert len(world.asked) == 6
