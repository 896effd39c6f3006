"""Does peak memory grow with vocabulary x length? At a vocabulary of 152k. `python -m benchmarks.memory`

A model with a small body, so that the vocabulary is all that could cost, and one response of growing length. GiB above
the weights, for scoring and for forward and backward with a trained head, ours and with logits of every position.
`logits` is what tokens x vocabulary numbers take in this dtype. Ours holds one chunk of positions, whatever the length.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, fresh, ways
from benchmarks.common import Setting
from benchmarks.fresh import Figures

LENGTHS = (256, 512, 1024, 2048, 4096)
NAMES = {
    "scoring_ours": "ours, scoring",
    "scoring_padded": "all logits, scoring",
    "training_ours": "ours, forward and backward",
    "training_padded": "all logits, forward and backward",
}


def scoring_ours(setting: Setting, folder: Path) -> Figures:
    return _scoring(setting, lambda model, groups: ways.packed(model, groups, setting.token_budget))


def scoring_padded(setting: Setting, folder: Path) -> Figures:
    return _scoring(setting, lambda model, groups: ways.padded(model, groups, 1))


def training_ours(setting: Setting, folder: Path) -> Figures:
    return _training(setting, lambda model, groups: ways.packed(model, groups, setting.token_budget))


def training_padded(setting: Setting, folder: Path) -> Figures:
    return _training(setting, lambda model, groups: ways.padded(model, groups, 1))


def _scoring(setting: Setting, logprobs: Callable[..., list[Tensor]]) -> Figures:
    model = common.load(setting.model, setting.dtype)
    with torch.no_grad():
        return _peak(model, setting, logprobs)


def _training(setting: Setting, logprobs: Callable[..., list[Tensor]]) -> Figures:
    model = common.load(setting.model, setting.dtype).requires_grad_(True)

    def both_ways(model: Any, groups: Any) -> None:
        torch.cat(logprobs(model, groups)).sum().backward()
        model.zero_grad()  # sets them to none

    return _peak(model, setting, both_ways)


def _peak(model: Any, setting: Setting, work: Callable[..., Any]) -> Figures:
    groups = common.candidates(setting, model.config.vocab_size)
    few = common.candidates(fresh.small(setting), model.config.vocab_size)
    return fresh.measure(lambda: work(model, groups), lambda: work(model, few), seconds=0.0)[0]


def show(found: dict[str, list[float | None]], lengths: list[int], logits: list[float], setting: Setting) -> None:
    lines = []
    for at, length in enumerate(lengths):
        values = [of_way[at] for of_way in found.values()]
        cells = ["failed" if value is None else f"{value:.2f}" for value in values]
        lines.append([str(length), f"{logits[at]:.2f}", *cells])
    title = f"{setting.model}, {setting.dtype}: GiB above the weights"
    common.print_table(title, ["tokens", "logits", *(NAMES[way] for way in found)], lines)


def main() -> None:
    parser = common.flags(__doc__, model="tiny-152k", prompt=16, n=1, spread=0.0, repeats=1)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens of the response")
    args: argparse.Namespace = common.parse(parser)
    if args.model not in common.SHAPES:
        parser.error(f"--model {args.model}: must be one of {', '.join(common.SHAPES)}")
    lengths = [int(length) for length in args.lengths.split(",")]
    setting = common.setting_of(args)
    targets = {way: f"benchmarks.memory:{way}" for way in NAMES}
    found: dict[str, list[float | None]] = {way: [] for way in NAMES}
    with fresh.shared_folder() as folder:
        for length in lengths:
            at = replace(setting, response=length)
            runs = fresh.run_rounds(list(targets.values()), at, folder, args.repeats)
            for way, target in targets.items():
                found[way].append(runs[target].get("work_gib"))
    bytes_each = 2 if setting.dtype == "bfloat16" else 4
    vocab_size = common.SHAPES[setting.model]["vocab_size"]
    logits = [length * vocab_size * bytes_each / 2**30 for length in lengths]
    show(found, lengths, logits, setting)
    common.write(args, setting, {"lengths": lengths, "logits_gib": logits, "above_weights_gib": found})


if __name__ == "__main__":
    main()
