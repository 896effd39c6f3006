"""What best-of-N by the gateway gains over one sample, asked of a running server through the official openai client.

    python -m benchmarks.gateway configs/demo.toml --problems 100

The run must be trained. Its own generator (after its warm-up) is served beside its reward model; the problems are the
first of its test split, judged by its own judge. Each is asked for one sample, for the best of `--best-of`, and for the
best of as many others by weighted vote.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from prm_ray.answers import Judge
from prm_ray.config import RunConfig, load_config
from prm_ray.core.metrics import Interval, percentile_interval, resample_means
from prm_ray.entry import add_config_arguments, failing_in_one_line
from prm_ray.errors import UserError
from prm_ray.problems import Problem, load_problems

if TYPE_CHECKING:
    from openai import OpenAI

_CLIENTS = 4
_WAYS = ("one sample", "any candidate", "best of N", "best of N, weighted vote")


@dataclass
class Asked:
    """Shares of right answers to one problem, by `_WAYS`; `any candidate` is the mean over those of the best of N."""

    right: list[float]
    seconds: float
    candidates: int
    completion_tokens: int


def measure(config: RunConfig, num_problems: int, best_of: int) -> dict[str, Any]:
    from openai import OpenAI

    from prm_ray.serve import server

    problems = [problem for problem in load_problems(config, "test") if problem.error is None][:num_problems]
    url = server.start(config)
    try:
        with (
            Judge(config.label) as judge,
            OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=2) as client,
            ThreadPoolExecutor(_CLIENTS) as threads,
        ):
            start = time.perf_counter()
            asked = list(threads.map(partial(_ask, client, judge, config, best_of), problems))
            return _summary(asked, time.perf_counter() - start)
    finally:
        server.stop()


def _ask(client: OpenAI, judge: Judge, config: RunConfig, best_of: int, problem: Problem) -> Asked:
    section = config.generate
    complete: Callable[..., Any] = partial(
        client.chat.completions.create,
        model="any",
        messages=[{"role": "user", "content": problem.problem}],
        max_tokens=section.max_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
    )

    def right(text: str) -> bool:
        return judge(text, str(problem.answer)).correct is True

    one = complete(extra_body={"best_of": 1})
    start = time.perf_counter()
    best = complete(extra_body={"best_of": best_of, "prm": {"return_candidates": True}})
    seconds = time.perf_counter() - start
    voted = complete(extra_body={"best_of": best_of, "prm": {"vote": "weighted"}})
    candidates = [each["text"] for each in best.model_extra["prm_metadata"]["candidates"]]
    texts = [each.choices[0].message.content or "" for each in (one, best, voted)]
    shares = [float(right(text)) for text in texts]
    shares.insert(1, float(np.mean([right(text) for text in candidates])))
    return Asked(shares, seconds, len(candidates), best.usage.completion_tokens)


def _summary(asked: list[Asked], seconds: float) -> dict[str, Any]:
    right_PW = np.array([each.right for each in asked])
    share_W, resampled_RW = right_PW.mean(0), resample_means(right_PW, 2000, 0)

    def shown(interval: Interval) -> list[float | None]:
        return [interval.value, interval.low, interval.high]

    columns = range(len(_WAYS))
    return {
        "num_problems": len(asked),
        "right": {_WAYS[at]: shown(percentile_interval(share_W[at], resampled_RW[:, at])) for at in columns},
        "over one sample": {
            _WAYS[at]: shown(percentile_interval(share_W[at] - share_W[0], resampled_RW[:, at] - resampled_RW[:, 0]))
            for at in columns
        },
        "median_seconds": float(np.median([each.seconds for each in asked])),
        "mean_candidates": float(np.mean([each.candidates for each in asked])),
        "mean_completion_tokens": float(np.mean([each.completion_tokens for each in asked])),
        "seconds": seconds,
    }


def show(figures: dict[str, Any]) -> None:
    rows = []
    for way, values in figures["right"].items():
        gains = figures["over one sample"][way]
        value, low, high, gain, gain_low, gain_high = (100 * number for number in [*values, *gains])
        rows.append([way, f"{value:.1f} % [{low:.1f}, {high:.1f}]", f"{gain:+.1f} [{gain_low:+.1f}, {gain_high:+.1f}]"])
    title = f"{figures['num_problems']} problems, {figures['mean_candidates']:.1f} candidates each"
    common.print_table(title, ["", "right", "points over one sample"], rows)
    print(f"median of a best-of-N request, {_CLIENTS} clients at once: {figures['median_seconds']:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--problems", type=int, default=100, help="of the test split (default 100)")
    parser.add_argument("--best-of", type=int, default=8, help="candidates a problem (default 8)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    with failing_in_one_line():
        if args.problems < 1 or args.best_of < 2:
            raise UserError("--problems must be at least 1 and --best-of at least 2")
        from prm_ray.serve.server import free_port

        served = ["serve.generator=vllm", f"serve.max_candidates={max(args.best_of, 32)}", f"serve.port={free_port()}"]
        figures = measure(load_config(args.config, [*args.overrides, *served]), args.problems, args.best_of)
    show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
