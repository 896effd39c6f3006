"""Search strategies over several seeds: accuracy, tokens, and best-of-N with the same tokens.

    python -m benchmarks.strategies runs/demo runs/demo_seed1

Each folder is a run with a `search/` of its own, best-of-N among its strategies; problems that all have are compared.
Intervals are 95 % bootstrap ones over problems, of the mean over seeds; differences are paired.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import print_table
from prm_ray.core.metrics import difference_interval, percentile_interval, resample_means
from prm_ray.search.picking import PICKS
from prm_ray.stages.searching.arms import Arm, Searched, read_arms
from prm_ray.stages.searching.names import arm_name
from prm_ray.tables import StageFolder

_RESAMPLES = 2000
Found = dict[str, Any]


def read(folders: list[Path]) -> list[dict[Arm, dict[str, Searched]]]:
    """Of each seed: arm -> problem -> what came of it."""
    return [
        {
            arm: {each.prompt_id: each for each in problems}
            for arm, problems in read_arms(StageFolder(folder, "search")).by_arm.items()
        }
        for folder in folders
    ]


def compare(seeds: list[dict[Arm, dict[str, Searched]]], how: str) -> list[Found]:
    """A row an arm. The last two figures: minus one sample, and minus best-of-N with the same mean tokens."""
    arms = [arm for arm in seeds[0] if all(arm in seed for seed in seeds)]
    shared = sorted(set.intersection(*(set(seed[arm]) for seed in seeds for arm in arms)))
    (whole,) = (arm for arm in arms if arm[0] == "best_of_n")
    all_tokens = np.mean([[seed[whole][key].tokens for key in shared] for seed in seeds])
    found = []
    for arm in sorted(arms):
        tokens = float(np.mean([[seed[arm][key].tokens for key in shared] for seed in seeds]))
        n = float(np.clip(whole[1] * tokens / all_tokens, 1, whole[1]))
        columns = [[how in seed[arm][key].right for key in shared] for seed in seeds]
        values_PM = np.column_stack(
            [
                np.mean(columns, axis=0),
                np.mean([[_at(seed[whole][key], how, 1.0) for key in shared] for seed in seeds], axis=0),
                np.mean([[_at(seed[whole][key], how, n) for key in shared] for seed in seeds], axis=0),
            ]
        )
        resampled_RM = resample_means(values_PM, _RESAMPLES, seed=0)
        means_M = values_PM.mean(axis=0)
        found.append(
            {
                "arm": {"strategy": arm[0], "size": arm[1]},
                "num_problems": len(shared),
                "tokens": tokens,
                "n_of_same_tokens": n,
                "by_seed": [float(np.mean(column)) for column in columns],
                "accuracy": asdict(percentile_interval(float(means_M[0]), resampled_RM[:, 0])),
                "over_one_sample": asdict(difference_interval(*means_M[[0, 1]], *resampled_RM[:, [0, 1]].T)),
                "over_best_of_n": asdict(difference_interval(*means_M[[0, 2]], *resampled_RM[:, [0, 2]].T)),
            }
        )
    return found


def _at(problem: Searched, how: str, n: float) -> float:
    """Accuracy of best-of-n; between two whole numbers on the line between theirs."""
    low, share = int(n), n - int(n)
    value = problem.accuracy(how, low, seed=0)
    return (1 - share) * value + share * problem.accuracy(how, low + 1, seed=0) if share else value


def _shown(figures: dict[str, float], sign: str) -> str:
    value, low, high = (f"{100 * figures[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run, one a seed")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    args = parser.parse_args()
    seeds = read(args.runs)
    found = {how: compare(seeds, how) for how in PICKS}
    for how, arms in found.items():
        rows = [
            [
                arm_name(arm["arm"]),
                f"{arm['tokens']:.0f}",
                _shown(arm["accuracy"], ""),
                " / ".join(f"{100 * value:.1f}" for value in arm["by_seed"]),
                _shown(arm["over_one_sample"], "+"),
                f"{_shown(arm['over_best_of_n'], '+')} (n = {arm['n_of_same_tokens']:.1f})",
            ]
            for arm in arms
        ]
        title = f"{arms[0]['num_problems']} problems, {len(seeds)} seeds, picked by {how}"
        print_table(
            title, ["", "tokens", "right, %", "by seed", "over one sample", "over best-of-n of its tokens"], rows
        )
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
