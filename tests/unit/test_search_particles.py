"""Particle filtering: how particles are drawn, and where they end up."""

import math
import random
from collections import Counter

import pytest
from searchtoys import ScriptedWorld, World, searched, texts

from prm_ray.search.candidate import Candidate
from prm_ray.search.particles import Particle, systematic, weights
from prm_ray.search.plan import Plan


def plainly(number: int, text: str = "1", value: float = 0.0, ended: bool = False) -> Candidate:
    return Candidate(number, -1, (number,), text, finish_reason="stop" if ended else None, value=value)


def test_systematic_draws_give_each_particle_its_share():
    """Its share of the draws rounded up or down every time, and the share itself on average: 0.1 * 5 = 0.5 draws."""
    shares, rounds = [0.1, 0.0, 0.55, 0.35], 4_000
    total: Counter[int] = Counter()
    for seed in range(rounds):
        drawn = Counter(systematic(shares, 5, random.Random(seed)))
        assert all(math.floor(5 * share) <= drawn[index] <= math.ceil(5 * share) for index, share in enumerate(shares))
        total += drawn
    for index, share in enumerate(shares):
        assert total[index] / rounds == pytest.approx(5 * share, abs=0.05)


def test_a_value_that_particles_were_drawn_by_is_not_counted_again():
    """The first was drawn by its value of 3 and has won nothing since; the second won log 3."""
    cloud = [Particle(plainly(0, value=3.0), counted=3.0), Particle(plainly(1, value=1 + math.log(3)), counted=1.0)]
    assert weights(cloud, temperature=1.0) == pytest.approx([1 / 4, 3 / 4])
    assert weights(cloud, temperature=0.5) == pytest.approx([1 / 10, 9 / 10])


def test_values_far_from_zero_have_weights():
    cloud = [Particle(plainly(0, value=-8_000.0)), Particle(plainly(1, value=-8_000.0, ended=True))]
    assert weights(cloud, temperature=0.01) == pytest.approx([0.5, 0.5])


def test_particles_end_up_where_the_value_puts_them():
    """A first letter "1" (chance 1/4) is worth log 16, so 16 / (16 + 3) = 84 % of particles have it from then on; the
    same for the second. Were the first counted again at the second drawing, 99 % would have it."""
    shares = []
    for seed in range(20):
        world = World(lambda text: math.log(16) * text[:2].count("1"), letters="0123", length=4)
        ended = searched("particles", world.search(seed), Plan(256))
        shares.append([sum(text[place] == "1" for text in texts(ended)) / len(ended) for place in (0, 1, 2)])
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    assert means == pytest.approx([16 / 19, 16 / 19, 1 / 4], abs=0.03)


def test_particles_of_nearly_equal_weight_are_not_drawn_anew():
    """Weights between 1 and e^0.8 = 2.2: the effective sample size is above half. Each of 16 goes on, none twice."""
    for seed in range(5):
        search = World(lambda text: 0.4 * text.count("1"), length=3).search(seed)
        assert len({candidate.parent for candidate in searched("particles", search, Plan(16))}) == 16


def test_copies_of_an_ended_particle_are_one_response():
    """ "a" has ended and holds nearly all weight: most of the 8 particles become it, and it is returned as often as it
    was written."""
    world = ScriptedWorld(children={"": "abbbbbbb", "b": "c"}, values={"a": 9.0})
    ended = searched("particles", world.search(), Plan(8))
    assert texts(ended)[0] == "a" and texts(ended).count("a") == 1
    assert len(world.asked) <= 8 + 1
