"""What does packing a prompt's responses behind one copy of it save? python benchmarks/packing.py [--out FILE.json]

Both ways in one run, on the same responses and weights, in turn:
  ours    packed trees, log-probs only at response positions, no logits matrix (prm_ray.core)
  padded  a row a response (prompt and response, right-padded), logits of every position: how the paper's code does it
Prints seconds, speed-ups and the largest difference of the log-probs; what it does not measure: GPUs, long responses.
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

from prm_ray.core.forward import response_logprobs
from prm_ray.core.packing import PromptGroup, pack
from prm_ray.models import EMBEDDED, load_model

SHAPES = {
    "8 x 18 tokens behind 26 (the demo)": (8, 26, 8, 18),
    "8 x 64 tokens behind 128": (4, 128, 8, 64),
    "8 x 128 tokens behind 512": (1, 512, 8, 128),
}
"""Name -> prompts, prompt tokens, responses a prompt, response tokens."""


def ours(model: Any, groups: list[PromptGroup]) -> torch.Tensor:
    """Log-probs in the order of groups and responses."""
    values: dict[tuple[int, int], torch.Tensor] = {}
    for batch in pack(groups, 4096):
        pieces = response_logprobs(model, batch).split(batch.lengths)
        values |= dict(zip(batch.branches, pieces, strict=True))
    return torch.cat([values[key] for key in sorted(values)])


def padded(model: Any, groups: list[PromptGroup]) -> torch.Tensor:
    pieces = []
    for group in groups:
        rows = [[*group.prompt, *response] for response in group.responses]
        length = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        logprobs_BTV = model(ids_BT, attention_mask=mask_BT).logits.float().log_softmax(dim=-1)
        picked_BT = logprobs_BTV[:, :-1].gather(2, ids_BT[:, 1:, None]).squeeze(2)
        start = len(group.prompt) - 1
        pieces += [picked_BT[i, start : start + len(r)] for i, r in enumerate(group.responses)]
    return torch.cat(pieces)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model: Any, shape: tuple[int, int, int, int], repeats: int) -> dict[str, Any]:
    num_prompts, prompt_length, num_responses, response_length = shape
    rng = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(100, 40_000) for _ in range(length)]

    groups = [
        PromptGroup(tokens(prompt_length), [tokens(response_length) for _ in range(num_responses)])
        for _ in range(num_prompts)
    ]
    with torch.no_grad():
        difference = (ours(model, groups) - padded(model, groups)).abs()
        score = [(seconds(lambda: ours(model, groups)), seconds(lambda: padded(model, groups))) for _ in range(repeats)]

    def train(way: Callable[..., torch.Tensor]) -> None:
        way(model, groups).sum().backward()
        model.zero_grad(set_to_none=True)

    step = [(seconds(lambda: train(ours)), seconds(lambda: train(padded))) for _ in range(repeats)]
    return {
        "response_tokens": num_prompts * num_responses * response_length,
        "score_seconds_ours": statistics.median(a for a, _ in score),
        "score_speedup": statistics.median(b / a for a, b in score),
        "step_seconds_ours": statistics.median(a for a, _ in step),
        "step_speedup": statistics.median(b / a for a, b in step),
        "mean_abs_difference": difference.mean().item(),
        "max_abs_difference": difference.max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    model = load_model(EMBEDDED, args.dtype)
    results = {name: measure(model, shape, args.repeats) for name, shape in SHAPES.items()}
    print(f"{'responses':<36}{'score':>8}{'step':>8}   (speed-up over padded rows with full logits, {args.dtype})")
    for name, figures in results.items():
        print(f"{name:<36}{figures['score_speedup']:>7.2f}x{figures['step_speedup']:>7.2f}x")
    if args.out:
        args.out.write_text(json.dumps({"dtype": args.dtype, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
