"""What does a prefix cache save where candidates grow step by step? python benchmarks/prefix_cache.py [--out FILE.json]

A search scores its candidates after every step. All ways in one run, in turn, on the same tokens and weights:
  cached    what an earlier call computed is kept (prm_ray.core.prefixcache); the cache starts empty
  scratch   every step anew, shared tokens once within a call (prm_ray without the cache)
  padded    every step anew, a row a candidate, right-padded, logits of every position: usual; only with --padded
  one pass  everything that was ever scored, once, packed in one call: what growing costs at least
Prints tokens that go through the model, seconds and ratios; what it does not measure: GPUs, a cache that is too small.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prm_ray.core.packing import PromptGroup, pack
from prm_ray.core.prefixcache import PrefixCache
from prm_ray.embeddedmodel import EMBEDDED
from prm_ray.models import load_model
from prm_ray.scorer import cached_group_logprobs, group_values

PROMPT, BEAMS, STEPS = 250, 16, 8
STEP_TOKENS = (9, 15)
"""A step has a length between these: 12 on average."""
BUDGET = 8192
SURVIVORS = {"each of 16 grows": 16, "4 of 16 go on, 4 ways each": 4}
"""Name -> candidates that go on after each step; each of them in 16 / survivors ways."""

Calls = list[PromptGroup]


def search(num_survivors: int, seed: int = 0) -> Calls:
    """What a search asks for, step by step; who goes on is drawn by lot."""
    rng = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(100, 40_000) for _ in range(length)]

    prompt, calls = tokens(PROMPT), []
    beams: list[list[int]] = [[] for _ in range(BEAMS)]
    for _ in range(STEPS):
        beams = [beam + tokens(rng.randint(*STEP_TOKENS)) for beam in beams]
        calls.append(PromptGroup(prompt, beams))
        beams = [beam for beam in rng.sample(beams, num_survivors) for _ in range(BEAMS // num_survivors)]
    return calls


def cached(model: Any, calls: Calls) -> list[torch.Tensor]:
    cache = PrefixCache(model, BUDGET)
    return [torch.cat(cached_group_logprobs(cache, [call], BUDGET)[0]) for call in calls]


def scratch(model: Any, calls: Calls) -> list[torch.Tensor]:
    return [torch.cat(group_values(model, [call], BUDGET)[0]) for call in calls]


@torch.no_grad()
def padded(model: Any, calls: Calls) -> None:
    for call in calls:
        rows = [[*call.prompt, *response] for response in call.responses]
        length = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        logprobs_BTV = model(ids_BT, attention_mask=mask_BT, use_cache=False).logits.float().log_softmax(dim=-1)
        logprobs_BTV[:, :-1].gather(2, ids_BT[:, 1:, None])


def everything(calls: Calls) -> PromptGroup:
    return PromptGroup(calls[0].prompt, [response for call in calls for response in call.responses])


def num_tokens(groups: Calls) -> int:
    return sum(len(batch.input_ids_T) for batch in pack(groups, 1 << 30))


def count(model: Any, calls: Calls) -> dict[str, int]:
    """Tokens that each way sends through the model, and what the cache weighs."""
    cache = PrefixCache(model, BUDGET)
    for call in calls:
        cached_group_logprobs(cache, [call], BUDGET)
    return {
        "cached": cache.num_computed,
        "scratch": sum(num_tokens([call]) for call in calls),
        "padded": sum(len(c.responses) * (PROMPT + max(map(len, c.responses))) for c in calls),
        "one pass": num_tokens([everything(calls)]),
        "one pass over the last candidates": num_tokens(calls[-1:]),
        "cache_bytes_a_token": cache.num_bytes // cache.num_tokens,
    }


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model: Any, calls: Calls, repeats: int, with_padded: bool) -> dict[str, Any]:
    ways: dict[str, Callable[[], Any]] = {
        "cached": lambda: cached(model, calls),
        "one pass": lambda: scratch(model, [everything(calls)]),
        "one pass over the last candidates": lambda: scratch(model, calls[-1:]),
        "scratch": lambda: scratch(model, calls),
    }
    difference = (torch.cat(cached(model, calls)) - torch.cat(scratch(model, calls))).abs()
    runs = [{name: seconds(way) for name, way in ways.items()} for _ in range(repeats)]
    times = {name: statistics.median(run[name] for run in runs) for name in ways}
    if with_padded:
        times["padded"] = seconds(lambda: padded(model, calls))
    return {
        "tokens": count(model, calls),
        "seconds": times,
        "cached_over_one_pass": statistics.median(run["cached"] / run["one pass"] for run in runs),
        "speedup_over_scratch": statistics.median(run["scratch"] / run["cached"] for run in runs),
        "mean_abs_difference": difference.mean().item(),
        "max_abs_difference": difference.max().item(),
    }


def show(name: str, figures: dict[str, Any]) -> None:
    tokens, times = figures["tokens"], figures["seconds"]
    print(f"\n{name}: prompt of {PROMPT}, {STEPS} steps of about 12 tokens")
    print(f"{'':<36}{'tokens':>8}{'seconds':>9}{'of one pass':>13}")
    for way in times:
        print(f"{way:<36}{tokens[way]:>8}{times[way]:>9.2f}{times[way] / times['one pass']:>12.2f}x")
    ratio, speedup = figures["cached_over_one_pass"], figures["speedup_over_scratch"]
    print(f"median of the rounds: cached costs {ratio:.2f}x one pass and is {speedup:.2f}x faster than scratch")
    mean, most = figures["mean_abs_difference"], figures["max_abs_difference"]
    print(f"log-probs differ by {mean:.2g} on average and {most:.2g} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--padded", action="store_true", help="also the usual way, which takes minutes on a CPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    model = load_model(EMBEDDED, args.dtype)
    results = {}
    for name, survivors in SURVIVORS.items():
        results[name] = measure(model, search(survivors), args.repeats, args.padded)
        show(name, results[name])
    if args.out:
        args.out.write_text(json.dumps({"dtype": args.dtype, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
