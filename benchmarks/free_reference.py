"""May the log-probs that vLLM returned while sampling stand in for a reference pass?

    python benchmarks/free_reference.py RUN

RUN is the folder of a finished run with `reference.logprobs = "sampled"`, e.g. runs/demo: its held-out candidates carry
vLLM's log-probs and the trained policy's. This computes the reference's log-probs anew with our own forward pass and
shows how far apart the two are, and what that changes: the reward of a response, the candidate that best-of-N picks,
its accuracy (paired, 95 % interval over problems). One run of one model; it says nothing about other engines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_ray.core.metrics import percentile_interval, resample_means
from prm_ray.core.rewards import aggregate, step_rewards
from prm_ray.entry import failing_in_one_line
from prm_ray.models import load_model, read_prm_json
from prm_ray.scorer import group_values
from prm_ray.stages.groups import group_rows
from prm_ray.tables import StageFolder

AGGREGATIONS = ("min", "sum")


def read_rows(run: Path) -> list[dict[str, Any]]:
    folder = StageFolder(run, "score")
    rows = [row for part in folder.finished_parts() for row in folder.read_part(part)]
    return [row for row in rows if row["error"] is None and row["ref_logprobs"]]


def rewards_of(row: dict[str, Any], ref_logprobs_T: NDArray[np.float64]) -> list[float]:
    ratio_T = np.array(row["policy_logprobs"]) - ref_logprobs_T
    rewards_S = step_rewards(ratio_T.tolist(), row["step_ends"])
    return [aggregate(rewards_S, how, len(ratio_T)) for how in AGGREGATIONS]


def measure(run: Path, dtype: str, limit: int | None) -> dict[str, Any]:
    rows = read_rows(run)
    grouped = group_rows(rows)[:limit]
    model = load_model(read_prm_json(run / "checkpoint")["reference"], dtype)
    computed = group_values(model, [group for _, group in grouped], 8192)
    differences, picks, correct = [], [], []
    for (numbers, _), logprobs in zip(grouped, computed, strict=True):
        ours = [values.double().numpy() for values in logprobs]
        theirs = [np.array(rows[number]["ref_logprobs"]) for number in numbers]
        differences += [one - other for one, other in zip(ours, theirs, strict=True)]
        rewards = [
            np.array([rewards_of(rows[number], values_T) for number, values_T in zip(numbers, values, strict=True)])
            for values in (ours, theirs)
        ]
        picks.append([rewards_NA.argmax(axis=0) for rewards_NA in rewards])
        right_N = np.array([rows[number]["correct"] is True for number in numbers], dtype=float)
        correct.append([right_N[pick_A] for pick_A in picks[-1]])
    return summary(differences, np.array(picks), np.array(correct))


def summary(differences: list[NDArray[np.float64]], picks_P2A: Any, correct_P2A: Any) -> dict[str, Any]:
    tokens = np.abs(np.concatenate(differences))
    sums = np.abs([values.sum() for values in differences])
    figures: dict[str, Any] = {
        "num_problems": len(picks_P2A),
        "num_responses": len(differences),
        "token_mean_abs": float(tokens.mean()),
        "token_p99_abs": float(np.quantile(tokens, 0.99)),
        "token_max_abs": float(tokens.max()),
        "response_mean_abs": float(sums.mean()),
        "response_max_abs": float(sums.max()),
    }
    for column, how in enumerate(AGGREGATIONS):
        ours_P, theirs_P = correct_P2A[:, 0, column], correct_P2A[:, 1, column]
        difference_P = ours_P - theirs_P
        difference = percentile_interval(difference_P.mean(), resample_means(difference_P[:, None], 2000, 0)[:, 0])
        figures[how] = {
            "same_pick": float((picks_P2A[:, 0, column] == picks_P2A[:, 1, column]).mean()),
            "accuracy_computed": float(ours_P.mean()),
            "accuracy_sampled": float(theirs_P.mean()),
            "computed_minus_sampled": [float(difference_P.mean()), difference.low, difference.high],
        }
    return figures


def show(figures: dict[str, Any], line: Callable[[str], None]) -> None:
    line(f"{figures['num_problems']} problems, {figures['num_responses']} responses")
    line(
        f"|sampled - computed| a token: mean {figures['token_mean_abs']:.4f}, 99th percentile "
        f"{figures['token_p99_abs']:.3f}, largest {figures['token_max_abs']:.3f}; a response: mean "
        f"{figures['response_mean_abs']:.3f}, largest {figures['response_max_abs']:.3f}"
    )
    for how in AGGREGATIONS:
        each = figures[how]
        value, low, high = (100 * number for number in each["computed_minus_sampled"])
        line(
            f"best-of-N by {how}: same pick {100 * each['same_pick']:.1f} %, right "
            f"{100 * each['accuracy_computed']:.1f} % computed, {100 * each['accuracy_sampled']:.1f} % sampled: "
            f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--limit", type=int, help="use the first so many problems")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit {args.limit}: must be at least 1")
    with failing_in_one_line():
        figures = measure(args.run, args.dtype, args.limit)
    show(figures, print)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
