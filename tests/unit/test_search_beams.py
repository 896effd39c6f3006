"""Beam search, DVTS and lookahead in toy worlds whose right outcome is worked out by hand; see tests/searchtoys.py."""

import asyncio
from collections import Counter

from searchtoys import ScriptedWorld, World, leading_ones, searched, texts

from prm_ray.search.picking import pick
from prm_ray.search.plan import Plan


def test_beam_search_finds_what_best_of_n_of_the_same_size_misses():
    """One of 2^10 responses is right. 32 whole ones contain it with chance 3 %. A beam whose 8 continuations are scored
    step by step goes wrong with chance 2^-8 a step."""

    def found(strategy: str) -> int:
        worlds = [World(leading_ones, length=10).search(seed) for seed in range(10)]
        return sum("1" * 10 in texts(searched(strategy, search, Plan(32, expand=8))) for search in worlds)

    assert found("beam") >= 9
    assert found("best_of_n") <= 2


def test_a_completed_beam_keeps_its_place_and_is_not_continued():
    """Two beams. "a" has ended and is worth 5; "b" goes on to "bc" and "bd", and as "a" stays there is room for one of
    them. Behind it come two that are worth more than "a" and push it out; it is returned all the same."""
    values = {"a": 5, "b": 4, "bc": 1, "bce": 7, "bcf": 6}
    world = ScriptedWorld(children={"": "abbb", "b": "cd", "bc": "ef", "bd": "g"}, values=values)
    search = world.search()
    assert texts(searched("beam", search, Plan(4, expand=2))) == ["a", "bce", "bcf"]
    assert [text for text, _ in world.asked] == [""] * 4 + ["b"] * 2 + ["bc"] * 2


def test_beam_search_ends_when_the_whole_frontier_has_ended():
    """Both places are held by ended responses that are worth more than the open "c": it is not continued."""
    world = ScriptedWorld(children={"": "abc", "c": "c"}, values={"a": 3, "b": 2, "c": 1})
    assert texts(searched("beam", world.search(), Plan(6, expand=3))) == ["a", "b", "a", "b"]
    assert len(world.asked) == 6


def test_beams_with_the_same_tokens_hold_one_place():
    """Of 4 first steps, 2 are "a", the best: the second place is "b"'s, though it is worth less than a copy of "a"."""
    world = ScriptedWorld(children={"": "ab", "a": "x", "b": "y"}, values={"a": 2, "b": 1})
    assert texts(searched("beam", world.search(), Plan(4, expand=2))) == ["ax", "ax", "by", "by"]


def test_a_beam_whose_continuations_all_fail_drops_out():
    world = World(lambda text: float(text.count("1")), fails=lambda text: "error" if text.startswith("11") else None)
    ended = searched("beam", world.search(), Plan(8, expand=4))
    assert ended and all(text.startswith(("0", "10")) for text in texts(ended))


def test_all_beams_are_continued_at_the_same_time():
    """The generator answers only once 8 continuations wait for it; were beams continued in turn, it never would."""
    world = World(leading_ones, letters="0123456789", length=2)
    search, rounds = world.search(), Counter()
    plain = search._propose

    async def propose(start, draw):
        answer = await plain(start, draw)
        rounds[len(start.text)] += 1
        while rounds[len(start.text)] < 8:
            await asyncio.sleep(0)
        return answer

    search._propose = propose
    assert len(searched("beam", search, Plan(8, expand=4))) == 8


def test_subtrees_stay_apart_where_a_beam_search_takes_one_branch():
    """The first subtree draws "a" and "b", the second "c" and "d". Beam search keeps "a" and "b", which are worth most;
    the second subtree keeps the better one of its own."""
    children = {"": "abcd", "a": "x", "b": "x", "c": "x", "d": "x"}
    values = {"a": 9, "b": 8, "c": 1, "d": 2}
    plan = Plan(4, expand=2)
    assert set(texts(searched("beam", ScriptedWorld(children=children, values=values).search(), plan))) == {"ax", "bx"}
    assert (
        texts(searched("dvts", ScriptedWorld(children=children, values=values).search(), plan))
        == ["ax"] * 2 + ["dx"] * 2
    )


def test_a_subtree_does_not_wait_for_another():
    """No step behind "a" comes before the other subtree has ended."""
    children = {"": "ab", "a": "a", "aa": "a", "b": "b", "bb": "b"}
    world = ScriptedWorld(children=children)
    search = world.search()
    plain = search._propose

    async def propose(start, draw):
        while start.text == "a" and "bbb" not in texts(search.ended):
            await asyncio.sleep(0)
        return await plain(start, draw)

    search._propose = propose
    assert texts(searched("dvts", search, Plan(2, expand=1))) == ["aaa", "bbb"]


TRAP = {"": "tg", "t": "x", "g": "x", "tx": "x", "gx": "x"}
TRAP_VALUES = {"t": 5, "g": 1, "tx": -9, "gx": 6, "txx": -9, "gxx": 6}


def test_lookahead_sees_the_trap_that_beam_search_walks_into():
    """ "t" is worth more than "g" now and less one step later. With one beam, beam search takes "t"."""
    plan = Plan(2, expand=2)
    assert set(texts(searched("beam", ScriptedWorld(children=TRAP, values=TRAP_VALUES).search(), plan))) == {"txx"}
    search = ScriptedWorld(children=TRAP, values=TRAP_VALUES).search()
    best = pick(searched("lookahead", search, plan), "best")
    assert best is not None and best.text == "gxx"


def test_the_steps_that_were_looked_at_are_paid_for_and_an_end_among_them_may_be_the_answer():
    """2 first steps and 1 looked at behind each; 2 steps "gx" and 1 end looked at behind each; then the 2 ends."""
    world = ScriptedWorld(children=TRAP, values=TRAP_VALUES)
    search = world.search()
    ended = searched("lookahead", search, Plan(2, expand=2))
    assert texts(ended) == ["gxx"] * 4
    assert search.num_sampled == len(search.candidates) == 10
    assert sum(draw.greedy for _, draw in world.asked) == 4


def test_a_candidate_that_cannot_be_looked_ahead_from_ranks_last():
    """ "tx" fails, so "t" is kept for want of anything better only; "g" is not."""
    world = ScriptedWorld(children=TRAP, values=TRAP_VALUES, fails=lambda text: "nan" if text == "tx" else None)
    assert set(texts(searched("lookahead", world.search(), Plan(2, expand=2)))) == {"gxx"}
