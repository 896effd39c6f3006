"""Adaptive N and early rejection on recorded candidates: what they pay in accuracy and save in tokens.

    python -m benchmarks.adaptive runs/demo/search --n 16
    python -m benchmarks.adaptive candidates.parquet --orders 20

Reads the best-of-N of a search (`search/`), the scores of a run (`scores/`), or a Parquet file or folder of rows with
prompt_id, answer, correct, value and num_tokens (for rejection also prefix_values and step_ends). The strategies of
`prm_ray.search` themselves are run, with a generator that gives N of the recorded candidates of a problem in a random
order, and a scorer that gives their recorded values; all problems are open, and one round is in flight.

Printed, as means over the orders: accuracy and tokens of fixed N, of adaptive N under budgets and error levels, and of
early rejection, and each accuracy less that of all N candidates on the same problems and orders, with 95 % bootstrap
intervals over problems.

Rejection is calibrated on the right candidates of half of the problems and measured on the other half, both ways.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import print_table
from prm_ray.core.metrics import resample_means
from prm_ray.search.adaptive import Adaptive, adaptive_n, whole_responses
from prm_ray.search.best_of_n import best_of_n
from prm_ray.search.budget import TokenBudget
from prm_ray.search.candidate import Candidate, Draw, Proposal, Reward
from prm_ray.search.picking import PICKS, pick
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.rejection import Rejection, calibrate

RESAMPLES = 2000


@dataclass(frozen=True)
class Recorded:
    """A candidate with S prefixes; without step rewards S = 1."""

    answer: str | None
    correct: bool
    prefix_values: tuple[float, ...]
    step_ends: tuple[int, ...]


Problem = list[Recorded]
Outcome = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Right (0 or 1) and tokens of each problem."""


def read(path: Path, aggregation: str, split: str) -> list[Problem]:
    """Candidates by problem; those without a value or a label are left out."""
    import pyarrow.parquet as pq

    problems: dict[str, Problem] = {}
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    for row in (row for file in files for row in pq.read_table(file).to_pylist()):
        if row.get("strategy", "best_of_n") != "best_of_n":
            continue
        value = row.get("value", row.get(f"reward_{aggregation}"))
        if row.get("split", split) == split and value is not None and row["correct"] is not None:
            values, ends = prefixes(row, value, aggregation)
            candidate = Recorded(row["answer"], bool(row["correct"]), values, ends)
            problems.setdefault(row["prompt_id"], []).append(candidate)
    return list(problems.values())


def prefixes(row: dict[str, Any], value: float, aggregation: str) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Value and token end of each step's prefix."""
    from prm_ray.core.rewards import aggregate

    if row.get("prefix_values") and row.get("step_ends"):
        return tuple(row["prefix_values"]), tuple(row["step_ends"])
    if not row.get("step_rewards") or not row.get("step_ends"):
        return (value,), (row.get("num_tokens") or row.get("num_sampled") or len(row["response_tokens"]),)
    rewards, ends = row["step_rewards"], row["step_ends"]
    return tuple(aggregate(rewards[: at + 1], aggregation, end) for at, end in enumerate(ends)), tuple(ends)


def replay(problem: Problem, order: Sequence[int]) -> ProblemSearch:
    """The problem as if its candidates were sampled in this order. A text is the candidate's number in `problem`."""
    to_come = iter(order)

    async def propose(start: Candidate, draw: Draw) -> Proposal:
        number = int(start.text) if start.tokens else next(to_come)
        ends = problem[number].step_ends
        at = len(ends) - 1 if draw.whole else next(step for step, end in enumerate(ends) if end > len(start.tokens))
        count = ends[at] - len(start.tokens)
        return Proposal((0,) * count, str(number), "stop" if at == len(ends) - 1 else None, count)

    async def score(candidate: Candidate) -> Reward:
        recorded = problem[int(candidate.text)]
        value = recorded.prefix_values[recorded.step_ends.index(len(candidate.tokens))]
        return Reward((value,), value)

    return ProblemSearch(propose, score, lambda text: problem[int(text)].answer)


class Study:
    """All problems, each in the same random orders for everything that is measured."""

    def __init__(self, problems: list[Problem], most: int, num_orders: int, seed: int, how: Any):
        self.problems, self.how = problems, how
        self.size = min(most, max(len(problem) for problem in problems))
        rng = np.random.default_rng(seed)
        self.orders = [
            [rng.permutation(len(problem))[: self.size].tolist() for problem in problems] for _ in range(num_orders)
        ]
        tokens = [np.mean([candidate.step_ends[-1] for candidate in problem]) for problem in problems]
        sizes = [min(self.size, len(problem)) for problem in problems]
        self.total = float(np.dot(tokens, sizes))

    def fixed(self, size: int) -> Outcome:
        return self._mean(lambda searches, _: [best_of_n(search, Plan(min(size, n))) for search, n in searches])

    def adaptive(self, rule: Adaptive, share: float | None, thresholds: Sequence[float] | None = None) -> Outcome:
        """`share` of the tokens of fixed N is the budget; `thresholds` of rejection, one a problem."""

        def start(searches: list[tuple[ProblemSearch, int]], _: int) -> list[Any]:
            budget = TokenBudget(int(share * self.total), len(searches), self.size) if share else None
            rejections = [Rejection(threshold).sample for threshold in thresholds or []]
            samples = rejections or [whole_responses] * len(searches)
            return [
                adaptive_n(search, Plan(n), rule, budget, sample)
                for (search, n), sample in zip(searches, samples, strict=True)
            ]

        return self._mean(start)

    def rejecting(self, thresholds: Sequence[float]) -> Outcome:
        return self._mean(
            lambda searches, _: [
                Rejection(threshold).sample(search, n)
                for (search, n), threshold in zip(searches, thresholds, strict=True)
            ]
        )

    def _mean(self, start: Any) -> Outcome:
        outcomes = [asyncio.run(self._run(order, start)) for order in range(len(self.orders))]
        right, tokens = np.mean(outcomes, axis=0)
        return right, tokens

    async def _run(self, order: int, start: Any) -> Outcome:
        pairs = zip(self.problems, self.orders[order], strict=True)
        searches = [(replay(problem, numbers), len(numbers)) for problem, numbers in pairs]
        ended = await asyncio.gather(*start(searches, order))
        right = [self._is_right(*one) for one in zip(self.problems, ended, strict=True)]
        return np.array(right, dtype=np.float64), np.array([search.num_sampled for search, _ in searches], np.float64)

    def _is_right(self, problem: Problem, ended: list[Candidate]) -> bool:
        """An answer is right if any candidate with it is."""
        picked = pick(ended, self.how)
        if picked is None:
            return False
        same = [each for each in problem if picked.answer is not None and each.answer == picked.answer]
        return problem[int(picked.text)].correct or any(each.correct for each in same)

    def thresholds(self, lost_right: float) -> list[float]:
        """Of each problem, calibrated on the half that it is not in."""
        halves = []
        for half in (0, 1):
            known = [candidate for problem in self.problems[half::2] for candidate in problem]
            values, correct = [each.prefix_values for each in known], [each.correct for each in known]
            halves.append(calibrate(values, correct, lost_right))
        return [halves[1 - at % 2] for at in range(len(self.problems))]


def rejected(problems: list[Problem], thresholds: Sequence[float]) -> tuple[float, float]:
    """Shares of right and of wrong candidates that fall below the threshold before their last step."""
    pairs = [
        (each.correct, min(each.prefix_values[:-1], default=np.inf) < threshold)
        for problem, threshold in zip(problems, thresholds, strict=True)
        for each in problem
    ]
    shares = [np.mean([dropped for correct, dropped in pairs if correct is kind]) for kind in (True, False)]
    return float(shares[0]), float(shares[1])


def row_of(name: str, outcome: Outcome, full: Outcome) -> list[str]:
    """Accuracy, tokens as a share of those of all candidates, and what is lost against them."""
    difference = outcome[0] - full[0]
    low, high = 100 * np.percentile(resample_means(difference[:, None], RESAMPLES, 0), [2.5, 97.5])
    lost = f"{100 * difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
    return [name, f"{100 * outcome[0].mean():.1f} %", f"{100 * outcome[1].sum() / full[1].sum():.0f} %", lost]


def rows(study: Study, args: argparse.Namespace) -> Iterator[list[str]]:
    full = study.fixed(study.size)
    for size in sorted({*range(2, study.size, max(1, study.size // 8)), study.size}):
        yield row_of(f"fixed N = {size}", study.fixed(size), full)
    for error in args.errors:
        yield row_of(f"until settled, e = {error}", study.adaptive(rule(args, error), None), full)
    for share, error in product(args.budgets, args.errors):
        yield row_of(f"budget {share:.0%}, e = {error}", study.adaptive(rule(args, error), share), full)
    if all(len(candidate.step_ends) == 1 for problem in study.problems for candidate in problem):
        return
    for lost_right in args.lost_right:
        limits = study.thresholds(lost_right)
        right, wrong = rejected(study.problems, limits)
        name = f"reject {lost_right:.0%} ({right:.1%} of right, {wrong:.0%} of wrong)"
        yield row_of(name, study.rejecting(limits), full)
        for share in args.budgets:
            outcome = study.adaptive(rule(args, args.errors[0]), share, limits)
            yield row_of(f"reject {lost_right:.0%}, budget {share:.0%}", outcome, full)


def rule(args: argparse.Namespace, error: float) -> Adaptive:
    return Adaptive(args.first, args.step, error, args.pick)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="scores/ of a run, or a Parquet file")
    parser.add_argument("--aggregation", default="min", help="of scores/")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pick", default="weighted_vote", choices=PICKS)
    parser.add_argument("--n", type=int, default=16, help="a random N of a problem's candidates in each order")
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=Adaptive.first)
    parser.add_argument("--step", type=int, default=Adaptive.step)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.8])
    parser.add_argument("--errors", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--lost-right", type=float, nargs="+", default=[0.05, 0.1])
    args = parser.parse_args()
    problems = read(args.path, args.aggregation, args.split) if args.path.exists() else []
    if not problems:
        parser.error(f"{args.path}: must hold scored and labelled candidates of the split {args.split!r}")
    study = Study(problems, args.n, args.orders, args.seed, args.pick)
    title = f"{len(problems)} problems x {study.size} candidates, {args.pick}, {args.orders} orders"
    columns = ["", "accuracy", "tokens", f"accuracy less that of N = {study.size}"]
    print_table(title, columns, list(rows(study, args)))


if __name__ == "__main__":
    main()
