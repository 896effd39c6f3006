"""Are right responses longer or shorter than wrong ones? A reward model may learn to go by length alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prm_ray.core.metrics import auc, within_problem_auc

COLUMNS = ["prompt_id", "response_tokens", "correct"]
_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}


def length_figures(rows: pa.Table) -> dict[str, Any]:
    """Response tokens of right and of wrong responses, and how often the right one of a pair is the longer.

    `rows` has `COLUMNS` without nulls. `right_is_longer` is an AUC, a tie counting half, over all pairs and within a
    problem (mean over the problems with both): 0.5 = length tells nothing. None where there are not both.
    """
    lengths_N = pc.list_value_length(rows["response_tokens"]).to_numpy().astype(np.float64)
    correct_N = rows["correct"].to_numpy().astype(bool)
    by_problem: dict[str, list[int]] = defaultdict(list)
    for number, prompt_id in enumerate(rows["prompt_id"].to_pylist()):
        by_problem[prompt_id].append(number)
    within = within_problem_auc([(lengths_N[numbers], correct_N[numbers]) for numbers in by_problem.values()])
    return {
        "right": _summary(lengths_N[correct_N]),
        "wrong": _summary(lengths_N[~correct_N]),
        "right_is_longer": {"overall": auc(lengths_N, correct_N), "within_problem": within.mean},
    }


def _summary(lengths_N: NDArray[np.float64]) -> dict[str, float | int | None]:
    if not len(lengths_N):
        return {"num": 0, "mean": None, **dict.fromkeys(_QUANTILES), "max": None}
    quantiles = {name: float(np.quantile(lengths_N, share)) for name, share in _QUANTILES.items()}
    return {"num": len(lengths_N), "mean": float(lengths_N.mean()), **quantiles, "max": int(lengths_N.max())}
