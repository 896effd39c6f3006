"""One optimizer step of the implicit PRM: ours against a plain padded loop. `python -m benchmarks.training --help`

  ours    `Trainer` on packed batches, log-probs without a logits matrix, reference log-probs at hand
  padded  a plain loop: padded micro-batches (`--batch` rows; the paper's code: 2), logits and log-softmax of every
          position, the reference model asked in every step

Both: forward, backward, gradient norm and clipping, AdamW on float32 masters of the weights, the same loss (CE on the
outcome label). The loss is that of the first step, beside one from float32, one response at a time. Without --prompt,
two shapes: 250 + 8 x 100 tokens, and the demo's 26 + 8 x 18. MFU: useful operations of ours (three times those of a
forward pass, see flops.py; for `padded` the same, so the ratio is that of the times) over the measured matrix rate.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, flops, fresh, ways
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from prm_ray.core.objectives import cross_entropy
from prm_ray.core.packing import PackedBatch, PromptGroup, pack
from prm_ray.trainer import Schedule, Trainer

SHAPES = ((250, 8, 100), (26, 8, 18))
"""Tokens of a prompt, responses, tokens of a response."""
BETA, LR, CLIP = 0.05, 1e-6, 1.0
NAMES = {"ours": "ours, cached reference", "padded": "plain padded loop, online reference"}


def ours(setting: Setting, folder: Path) -> Figures:
    model = common.load(setting.model, "float32").requires_grad_(True)
    groups = common.candidates(setting, model.config.vocab_size)
    cached = _reference_sums(setting, groups)
    schedule = Schedule(LR, total_steps=10_000, warmup_ratio=0.0)
    trainer = Trainer(model, schedule, compute_dtype=getattr(torch, setting.dtype), grad_clip=CLIP)

    def loss(batch: PackedBatch, logprobs_R: Tensor) -> Tensor:
        rows = [group * setting.n + response for group, response in batch.branches]
        policy_B = torch.stack([values.sum() for values in logprobs_R.split(batch.lengths)])
        return cross_entropy(policy_B - cached[rows], _labels(len(cached), policy_B.device)[rows], BETA)

    def step() -> float:
        return trainer.step(pack(groups, setting.token_budget), loss, len(cached)).loss

    return _measured(setting, step)


def padded(setting: Setting, folder: Path) -> Figures:
    policy = common.load(setting.model, "float32").requires_grad_(True)
    reference = common.load(setting.model, setting.dtype, variant=1)
    rows = ways.rows_of(common.candidates(setting, policy.config.vocab_size))
    masters = [parameter.detach().clone() for parameter in policy.parameters()]
    policy.to(getattr(torch, setting.dtype)).train()
    optimizer = torch.optim.AdamW(masters, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    labels = _labels(len(rows), policy.device)

    def step() -> float:
        total = 0.0
        for start in range(0, len(rows), setting.batch):
            some = slice(start, start + setting.batch)
            with torch.no_grad():
                reference_B = _sums(ways.padded_batch(reference, rows[some]))
            policy_B = _sums(ways.padded_batch(policy, rows[some]))
            loss = cross_entropy(policy_B - reference_B, labels[some], BETA) / len(rows)
            loss.backward()
            total += loss.item()
        for master, parameter in zip(masters, policy.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        for master, parameter in zip(masters, policy.parameters(), strict=True):
            parameter.data.copy_(master)
        return total

    return _measured(setting, step)


def exact(setting: Setting, folder: Path) -> Figures:
    """The loss before any step, in float32, a response at a time."""
    policy = common.load(setting.model, "float32")
    groups = common.candidates(setting, policy.config.vocab_size)
    with torch.no_grad():
        policy_B = _sums(ways.one_by_one(policy, groups))
        reference_B = _sums(ways.one_by_one(common.load(setting.model, "float32", variant=1), groups))
    loss = cross_entropy(policy_B - reference_B, _labels(len(policy_B), policy_B.device), BETA)
    return {"loss": loss.item() / len(policy_B)}


def rate(setting: Setting, folder: Path) -> Figures:
    """Useful operations of a step, and operations a second of the model's matrices alone (forward)."""
    model = common.load(setting.model, setting.dtype)
    batches = pack(common.candidates(setting, model.config.vocab_size), setting.token_budget)
    works = [flops.body_products(model, len(batch.input_ids_T)) for batch in batches]
    works += [flops.head_products(model, len(batch.target_U)) for batch in batches]

    def work() -> None:
        for one in works:
            one()

    figures, _ = fresh.measure(work, work, setting.seconds)
    wanted = [flops.useful(model, batch) for batch in batches]
    matrices = sum(one["body"] + one["head"] for one in wanted)
    seconds = common.summary(figures["all_seconds"])["seconds"]
    return {"flops_of_a_step": 3 * sum(sum(one.values()) for one in wanted), "flops_per_second": matrices / seconds}


def _measured(setting: Setting, step: Callable[[], float]) -> Figures:
    """Times of steps behind a first one, which makes the optimizer's state and whose loss is reported."""
    first = step()
    figures, _ = fresh.measure(step, lambda: None, setting.seconds)
    tokens = common.num_response_tokens(common.candidates(setting, 1000))
    return figures | {"loss": first, "response_tokens": tokens}


def _reference_sums(setting: Setting, groups: list[PromptGroup]) -> Tensor:
    reference = common.load(setting.model, setting.dtype, variant=1)
    with torch.no_grad():
        sums_B = _sums(ways.packed(reference, groups, setting.token_budget)).to(reference.device)
    del reference
    gc.collect()
    return sums_B


def _sums(logprobs: list[Tensor]) -> Tensor:
    return torch.stack([values.sum() for values in logprobs])


def _labels(number: int, device: Any) -> Tensor:
    """Every other response is right."""
    return torch.arange(number, device=device) % 2 == 0


def of_shape(setting: Setting, repeats: int) -> dict[str, Any]:
    with fresh.shared_folder() as folder:
        targets = {name: f"benchmarks.training:{name}" for name in (*NAMES, "exact", "rate")}
        runs = fresh.run_rounds([targets[name] for name in NAMES], setting, folder, repeats)
        measured = fresh.run_fresh(targets["rate"], setting, folder)
        loss = fresh.run_fresh(targets["exact"], setting, folder)
    found = {name: runs[targets[name]] for name in NAMES}
    for run in (run for run in found.values() if "error" not in run):
        run |= common.summary(run["all_seconds"])
        run["response_tokens_per_second"] = run["response_tokens"] / run["seconds"]
        if "error" not in measured:
            run["mfu"] = measured["flops_of_a_step"] / run["seconds"] / measured["flops_per_second"]
        if "error" not in loss:
            run["loss_difference"] = run["loss"] - loss["loss"]
        if "error" not in found["ours"]:
            run["times_slower_than_ours"] = run["seconds"] / found["ours"]["seconds"]
            run["times_our_peak"] = run["peak_gib"] / found["ours"]["peak_gib"]
    return {"setting": asdict(setting), "rate": measured, "float32_loss": loss.get("loss"), "ways": found}


def show(result: dict[str, Any], setting: Setting) -> None:
    columns = [
        "",
        "resp. tok/s",
        "seconds",
        "spread",
        "x ours",
        "MFU",
        "peak GiB",
        "over weights",
        "loss",
        "to float32",
    ]
    formats = {
        "response_tokens_per_second": ".0f",
        "seconds": ".3f",
        "spread": ".0%",
        "times_slower_than_ours": ".2f",
        "mfu": ".1%",
        "peak_gib": ".2f",
        "work_gib": ".2f",
        "loss": ".6f",
        "loss_difference": "+.1e",
    }
    lines = []
    for name, run in result["ways"].items():
        cells = [format(run[key], form) if key in run else "" for key, form in formats.items()]
        failed = ["failed: " + run["error"][:60], *cells[1:]] if "error" in run else cells
        lines.append([NAMES[name], *failed])
    common.print_table(f"a training step: {setting}", columns, lines)


def main() -> None:
    parser = common.flags(__doc__, prompts=4, n=8, batch=8, prompt=None)
    args: argparse.Namespace = common.parse(parser)
    shapes = SHAPES if args.prompt is None else ((args.prompt, args.n, args.response),)
    settings = [common.setting_of(args, prompt=prompt, n=n, response=response) for prompt, n, response in shapes]
    results = []
    for setting in settings:
        results.append(of_shape(setting, args.repeats))
        show(results[-1], setting)
    common.write(args, settings[0], {"training": results})


if __name__ == "__main__":
    main()
