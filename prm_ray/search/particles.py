"""Particle filtering: Puri et al. 2025 (arXiv 2502.01618), which samples responses in proportion to what the PRM makes
of them where beam search maximises it, so an error of the PRM misleads it less.

Every open particle takes a step; then each has the weight `exp(value / temperature)`, those that have ended too, and
the particles are drawn anew by their weights. What is done differently, and why:

- Once particles were drawn by a value, only what has been added to it since is a weight (`Particle.counted`). The value
  here is that of the whole prefix, so counting it in each round anew would favour responses by the number of rounds
  that they were there for; this way the particles stand for `p(response) * exp(value / temperature)`.
- They are drawn anew only when the effective sample size, `(sum w)^2 / sum w^2`, is below half of `plan.size`; until
  then weights add up (Liu and Chen 1995). Each drawing loses particles for good, and pays only where weights are
  uneven.
- The drawing is systematic, which adds the least noise: a particle with the share `w` of all weight gets `size * w`
  copies, rounded up or down at random (Kitagawa 1996). The paper draws each independently.

Copies of an open particle go on separately. Copies of one that has ended are one response, which is returned once, and
is returned too if it was not drawn again. A particle whose step failed is gone until the next drawing fills its place.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np

from prm_ray.search.candidate import Candidate
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch, gather


class Particle(NamedTuple):
    candidate: Candidate
    counted: float = 0.0
    """The part of its value that it was already drawn by."""


async def particles(search: ProblemSearch, plan: Plan) -> list[Candidate]:
    cloud = [Particle(search.root)] * plan.size
    ended: dict[int, Candidate] = {}
    while any(particle.candidate.is_open for particle in cloud):
        stepped = await gather(*(_step(search, particle) for particle in cloud))
        cloud = [particle for particle in stepped if particle is not None]
        ended |= {each.candidate.number: each.candidate for each in cloud if each.candidate.has_ended}
        cloud = _resample(cloud, plan, search.rng)
    return list(ended.values())


async def _step(search: ProblemSearch, particle: Particle) -> Particle | None:
    if not particle.candidate.is_open:
        return particle
    grown = await search.grow_one(particle.candidate)
    return None if grown is None else particle._replace(candidate=grown)


def _resample(cloud: list[Particle], plan: Plan, rng: Random) -> list[Particle]:
    if not any(particle.candidate.is_open for particle in cloud):
        return cloud
    shares = weights(cloud, plan.temperature)
    if 1 / sum(share**2 for share in shares) >= plan.size / 2:
        return cloud
    drawn = [cloud[index] for index in systematic(shares, plan.size, rng)]
    return [Particle(particle.candidate, particle.candidate.worth()) for particle in drawn]


def weights(cloud: list[Particle], temperature: float) -> list[float]:
    """Share of each particle of all weight; by softmax, as the exponential of a log-ratio of -800 is 0."""
    gains = np.array([particle.candidate.worth() - particle.counted for particle in cloud])
    unscaled = np.exp((gains - gains.max()) / temperature)
    return [float(share) for share in unscaled / unscaled.sum()]


def systematic(shares: list[float], count: int, rng: Random) -> list[int]:
    """Indices of `count` draws: evenly spaced points, moved together by chance, on the shares laid end to end."""
    ends = np.cumsum(shares)
    points = (np.arange(count) + rng.random()) / count * ends[-1]
    drawn = np.searchsorted(ends, points, side="right")
    return [min(int(index), len(shares) - 1) for index in drawn]  # rounding may put the last point on the last end
