"""Log-ratios of candidates: this project's engine against how others get them. `python -m benchmarks.scoring --help`

  both      ours, policy and reference pass
  cached    ours, reference log-probs at hand
  without   ours, without a reference
  padded    the paper's code: padded batches, logits and log-softmax of every position, two models, nothing shared
  loop      trainers on transformers: a response at a time, logits at its own positions, two models
  vllm      vLLM's prompt_logprobs, token ids in, one model; the row for two models is twice its time

Each in its own process, `--repeats` times in alternating order. The tokens are random and share only their prompt.
`--sweep` times `both` and `padded` over N, prompt length and response length instead, for `benchmarks.plots`.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, fresh, ways
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from prm_ray.core.packing import PromptGroup

NAMES = {
    "both": "ours, policy and reference",
    "cached": "ours, cached reference",
    "without": "ours, without reference",
    "padded": "padded batches, full logits (the paper's code)",
    "loop": "one response at a time (transformers loop)",
    "vllm": "vLLM prompt_logprobs, policy alone",
}
TWICE_VLLM = "vLLM prompt_logprobs, both (twice the above)"
AXES = {"n": (1, 4, 16, 64), "prompt": (32, 128, 512, 1024), "response": (16, 64, 256, 512)}
Score = Callable[[list[PromptGroup]], list[Tensor]]


def both(setting: Setting, folder: Path) -> Figures:
    return _two_models(setting, lambda model, groups: ways.packed(model, groups, setting.token_budget))


def cached(setting: Setting, folder: Path) -> Figures:
    policy = common.load(setting.model, setting.dtype)

    def score(groups: list[PromptGroup]) -> list[Tensor]:
        logprobs = ways.packed(policy, groups, setting.token_budget)
        reference = [torch.zeros(len(values)) for values in logprobs]  # any numbers do: they are only subtracted
        _log_ratios(logprobs, reference)
        return logprobs

    return _measure(setting, policy.config.vocab_size, score)


def without(setting: Setting, folder: Path) -> Figures:
    policy = common.load(setting.model, setting.dtype)
    return _measure(setting, policy.config.vocab_size, lambda groups: ways.packed(policy, groups, setting.token_budget))


def padded(setting: Setting, folder: Path) -> Figures:
    return _two_models(setting, lambda model, groups: ways.padded(model, groups, setting.batch))


def loop(setting: Setting, folder: Path) -> Figures:
    return _two_models(setting, ways.one_by_one)


def vllm(setting: Setting, folder: Path) -> Figures:
    from benchmarks.vllm_way import Engine

    engine = Engine(setting, folder)
    try:
        return _measure(setting, engine.vocab_size, engine.prompt_logprobs)
    finally:
        engine.close()


def exact(setting: Setting, folder: Path) -> Figures:
    """Log-probs of the first candidates one by one in float32."""
    model = common.load(setting.model, "float32")
    groups = common.candidates(setting, model.config.vocab_size)
    with torch.no_grad():
        return {"logprobs": _first(ways.one_by_one(model, _few(groups, setting.check)), setting.check)}


def _two_models(setting: Setting, logprobs: Callable[[Any, list[PromptGroup]], list[Tensor]]) -> Figures:
    policy = common.load(setting.model, setting.dtype)
    reference = common.load(setting.model, setting.dtype, variant=1)

    def score(groups: list[PromptGroup]) -> list[Tensor]:
        found = logprobs(policy, groups)
        _log_ratios(found, logprobs(reference, groups))
        return found

    return _measure(setting, policy.config.vocab_size, score)


def _measure(setting: Setting, vocab_size: int, score: Score) -> Figures:
    groups = common.candidates(setting, vocab_size)
    few = common.candidates(fresh.small(setting), vocab_size)
    with torch.no_grad():
        figures, logprobs = fresh.measure(lambda: score(groups), lambda: score(few), setting.seconds)
    tokens = common.num_response_tokens(groups)
    return figures | {"response_tokens": tokens, "logprobs": _first(logprobs, setting.check)}


def _log_ratios(policy: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    return [(ours - theirs).sum().item() for ours, theirs in zip(policy, reference, strict=True)]


def _few(groups: list[PromptGroup], number: int) -> list[PromptGroup]:
    """The groups cut to about so many candidates, all from the first ones."""
    few = []
    for group in groups:
        few.append(PromptGroup(group.prompt, group.responses[:number]))
        number -= len(few[-1].responses)
        if number <= 0:
            break
    return few


def _first(logprobs: Sequence[Tensor], number: int) -> list[float]:
    return [value for values in logprobs[:number] for value in values.tolist()]


def rows(runs: dict[str, Figures], setting: Setting) -> dict[str, Figures]:
    """What the table and the JSON say of each way; the ratios are to `both`: ours, two passes."""
    exactly = runs.pop("exact").get("logprobs")
    found: dict[str, Figures] = {}
    for way, run in runs.items():
        if "error" in run:
            found[NAMES[way]] = run
            continue
        kept = {key: run[key] for key in ("all_seconds", "response_tokens", "peak_gib", "work_gib")}
        row = kept | common.summary(run["all_seconds"])
        if exactly is not None:
            row |= common.differences(run["logprobs"], exactly)
        found[NAMES[way]] = row
        if way == "vllm":
            found[TWICE_VLLM] = row | {"seconds": 2 * row["seconds"]}
    ours = found.get(NAMES["both"], {})
    for row in found.values():
        if "seconds" in row:
            row["response_tokens_per_second"] = row["response_tokens"] / row["seconds"]
            row["candidates_per_second"] = setting.num_prompts * setting.n / row["seconds"]
        if "seconds" in row and "seconds" in ours:
            row["times_slower_than_ours"] = row["seconds"] / ours["seconds"]
            row["times_our_peak"] = row["peak_gib"] / ours["peak_gib"]
    return found


def show(found: dict[str, Figures], title: str) -> None:
    columns = [
        "",
        "resp. tok/s",
        "cand./s",
        "seconds",
        "spread",
        "x ours",
        "peak GiB",
        "over weights",
        "max diff",
        "mean",
    ]
    lines = []
    for name, row in found.items():
        if "error" in row:
            lines.append([name, "failed: " + row["error"][:60], *[""] * (len(columns) - 2)])
            continue
        ratio = row.get("times_slower_than_ours")
        lines.append(
            [
                name,
                f"{row['response_tokens_per_second']:.0f}",
                f"{row['candidates_per_second']:.2f}",
                f"{row['seconds']:.3f}",
                f"{row['spread']:.0%}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{row['peak_gib']:.2f}",
                f"{row['work_gib']:.2f}",
                f"{row['max_difference']:.1e}" if "max_difference" in row else "",
                f"{row['mean_difference']:.1e}" if "mean_difference" in row else "",
            ]
        )
    common.print_table(title, columns, lines)


def sweep(setting: Setting, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Points of `both` and `padded`: one axis at a time, the others as in `setting`."""
    points = []
    for axis, values in AXES.items():
        for value in values:
            at = Setting(**(asdict(setting) | {axis: value}))
            runs = fresh.run_rounds(_targets(["both", "padded"]), at, folder, repeats)
            for target, run in runs.items():
                point: dict[str, Any] = {"axis": axis, "value": value, "way": target.split(":")[1]}
                if "error" not in run:
                    point |= common.summary(run["all_seconds"])
                points.append(point | {key: run[key] for key in ("error", "peak_gib", "work_gib") if key in run})
    return points


def _targets(names: Sequence[str]) -> list[str]:
    return [f"benchmarks.scoring:{name}" for name in names]


def main() -> None:
    parser = common.flags(__doc__)
    parser.add_argument("--ways", default=",".join(NAMES), help="some of " + ",".join(NAMES))
    parser.add_argument("--sweep", action="store_true", help="vary N, prompt and response length; 16 candidates else")
    args: argparse.Namespace = common.parse(parser)
    chosen = [way for way in args.ways.split(",") if way]
    if not chosen:
        parser.error(f"--ways is empty: must be some of {','.join(NAMES)}")
    if unknown := set(chosen) - NAMES.keys():
        parser.error(f"--ways {','.join(sorted(unknown))}: must be some of {','.join(NAMES)}")
    if "vllm" in chosen and importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: its rows are left out")
        chosen.remove("vllm")
    setting = common.setting_of(args)
    with fresh.shared_folder() as folder:
        if args.sweep:
            setting = replace(setting, n=min(setting.n, 16))
            points = sweep(setting, folder, args.repeats)
            lines = [[f"{p['axis']} {p['value']}", p["way"], f"{p.get('seconds', -1):.3f}"] for p in points]
            common.print_table("seconds for all candidates of a prompt, both models", ["", "way", "seconds"], lines)
            common.write(args, setting, {"sweep": points})
            return
        runs = fresh.run_rounds(_targets(chosen), setting, folder, args.repeats)
        named = {target.split(":")[1]: run for target, run in runs.items()}
        found = rows(named | {"exact": fresh.run_fresh("benchmarks.scoring:exact", setting, folder)}, setting)
    show(found, str(setting))
    common.write(args, setting, {"scoring": found})


if __name__ == "__main__":
    main()
