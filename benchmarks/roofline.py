"""What fraction of this machine's own matrix rate does a whole scoring pass reach? `python -m benchmarks.roofline`

The rate is measured on the model's own matrices in isolation: same weights, number of tokens, dtype and threads, one
product behind the other. The pass is `response_logprobs` of all packed batches: its useful operations (see flops.py)
per second, over that rate. All parts are timed in turn in one process, and their medians taken. The breakdown times
each part alone; "rest" is what is left of the whole: norms, rotary embeddings, activations, additions, Python.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, flops, fresh
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from prm_ray.core.attention import NAME, backend_of
from prm_ray.core.forest import ForestAttention
from prm_ray.core.forward import response_logprobs
from prm_ray.core.logprobs import token_logprobs
from prm_ray.core.packing import PackedBatch, pack

_MIN_ROUNDS = 3


def measure(setting: Setting, folder: Path) -> Figures:
    model = common.load(setting.model, setting.dtype)
    batches = pack(common.candidates(setting, model.config.vocab_size), setting.token_budget)
    batches = [batch.to(model.device) for batch in batches]
    with torch.no_grad():
        seconds = _in_turn(_parts(model, batches), setting.seconds)
    wanted = [flops.useful(model, batch) for batch in batches]
    return {
        "backend": backend_of(model.device),
        "tokens": sum(len(batch.input_ids_T) for batch in batches),
        "response_positions": sum(len(batch.target_U) for batch in batches),
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "spread": {name: common.summary(times)["spread"] for name, times in seconds.items()},
        "rounds": len(seconds["whole"]),
        "flops": {part: sum(one[part] for one in wanted) for part in wanted[0]},
    }


def _parts(model: Any, batches: list[PackedBatch]) -> dict[str, Callable[[], Any]]:
    """What is timed: the whole pass, and parts of it by themselves over all batches."""
    response_logprobs(model, batches[0])  # registers the attention
    parts: dict[str, list[Callable[[], Any]]] = {
        "whole": [partial(response_logprobs, model, batch) for batch in batches],
        "body matrices": [flops.body_products(model, len(batch.input_ids_T)) for batch in batches],
        "head matrix": [flops.head_products(model, len(batch.target_U)) for batch in batches],
        "attention": [_attention(model, batch) for batch in batches],
        "head and log-softmax": [_head(model, batch) for batch in batches],
    }
    return {name: partial(_run_all, works) for name, works in parts.items()}


def _run_all(works: list[Callable[[], Any]]) -> None:
    for work in works:
        work()


def _attention(model: Any, batch: PackedBatch) -> Callable[[], None]:
    """Attention of all layers, with what is made once a batch."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[NAME]
    layer = next(module for module in model.modules() if type(module).__name__.endswith("Attention"))
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads

    def states(number: int) -> torch.Tensor:
        shape = (1, len(batch.input_ids_T), number, size)  # a layer's own order in memory
        return torch.randn(shape, dtype=model.dtype, device=model.device).transpose(1, 2)

    query, key, value = states(heads), states(key_value_heads), states(key_value_heads)

    def work() -> None:
        forest = ForestAttention(batch.nodes, len(batch.input_ids_T), model.device)
        for _ in range(config.num_hidden_layers):
            attend(layer, query, key, value, None, forest=forest, scaling=size**-0.5)

    return work


def _head(model: Any, batch: PackedBatch) -> Callable[[], Any]:
    head = model.get_output_embeddings()
    width = head.weight.shape[1]
    hidden = torch.randn(len(batch.target_U), width, dtype=head.weight.dtype, device=head.weight.device)
    return partial(token_logprobs, hidden, head.weight, batch.target_U, head.bias)


def _in_turn(parts: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Times of every part, round after round until the whole passes took so many seconds; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    while len(times["whole"]) < 1 + _MIN_ROUNDS or sum(times["whole"]) < seconds:
        for name, work in parts.items():
            _wait()
            start = time.perf_counter()
            work()
            _wait()
            times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def evaluated(figures: Figures) -> Figures:
    """Rate of the matrices alone, and how much of it the whole pass reaches."""
    seconds, operations = figures["seconds"], figures["flops"]
    rate = (operations["body"] + operations["head"]) / (seconds["body matrices"] + seconds["head matrix"])
    reached = sum(operations.values()) / seconds["whole"]
    timed_parts = seconds["body matrices"] + seconds["attention"] + seconds["head and log-softmax"]
    return figures | {
        "matrix_flops_per_second": rate,
        "useful_flops_per_second": reached,
        "fraction": reached / rate,
        "rest_seconds": seconds["whole"] - timed_parts,
    }


def show(figures: Figures, setting: Setting) -> None:
    operations, seconds, whole = figures["flops"], figures["seconds"], figures["seconds"]["whole"]
    print(f"\n{setting}; attention: {figures['backend']}")
    print(f"matrices in isolation   {figures['matrix_flops_per_second'] / 1e9:10.1f} GFLOP/s")
    print(f"useful work of a pass   {figures['useful_flops_per_second'] / 1e9:10.1f} GFLOP/s")
    print(f"fraction reached        {figures['fraction']:10.1%}")
    of_part = {"body matrices": "body", "attention": "attention", "head and log-softmax": "head"}
    lines = [
        [
            name,
            f"{operations[part] / 1e9:.1f}",
            f"{seconds[name]:.3f}",
            f"{seconds[name] / whole:.1%}",
            f"{figures['spread'][name]:.0%}",
        ]
        for name, part in of_part.items()
    ]
    rest = figures["rest_seconds"]
    lines.append(["rest", "", f"{rest:.3f}", f"{rest / whole:.1%}", ""])
    total = f"{sum(operations.values()) / 1e9:.1f}"
    lines.append(["whole pass", total, f"{whole:.3f}", "100.0%", f"{figures['spread']['whole']:.0%}"])
    common.print_table("parts, each timed alone", ["", "useful GFLOP", "seconds", "of the pass", "spread"], lines)


def main() -> None:
    args: argparse.Namespace = common.parse(common.flags(__doc__, repeats=1))
    setting = common.setting_of(args)
    with fresh.shared_folder() as folder:
        runs = [fresh.run_fresh("benchmarks.roofline:measure", setting, folder) for _ in range(args.repeats)]
    if failed := next((run["error"] for run in runs if "error" in run), None):
        sys.exit(failed)
    results = sorted(map(evaluated, runs), key=lambda run: run["fraction"])
    show(results[len(results) // 2], setting)
    print("fraction of each process: " + ", ".join(f"{run['fraction']:.1%}" for run in results))
    common.write(args, setting, {"roofline": results})


if __name__ == "__main__":
    main()
