"""What scoring costs beside generating: vLLM makes candidates, then exactly those are scored.

    python -m benchmarks.generation --model smollm2-135m-instruct --prompts 8 --n 8

Each round generates anew and scores what came, so a ratio is of one run; between rounds the order cannot change, since
there is nothing to score before. `both` = policy and reference pass; `free` = policy pass, and vLLM's own log-probs of
its samples stand in for the reference. Also: how far those free log-probs are from ours and from float32.
With the embedded model the prompts are worked arithmetic problems, else random tokens. Samples never end early.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, fresh, ways
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from prm_ray.core.packing import PromptGroup


def generate(setting: Setting, folder: Path) -> Figures:
    """Time of sampling all candidates; they go into the folder for the other functions."""
    from benchmarks.vllm_way import Engine

    engine = Engine(setting, folder)
    try:
        *prompts, other = _prompts(setting, engine.vocab_size)
        figures, samples = fresh.measure(lambda: engine.generate(prompts), lambda: engine.generate([other]), 0.0)
    finally:
        engine.close()
    groups: list[dict[str, Any]] = [
        {"prompt": prompt, "samples": [asdict(sample) for sample in of_prompt]}
        for prompt, of_prompt in zip(prompts, samples, strict=True)
    ]
    (folder / "candidates.json").write_text(json.dumps(groups), encoding="utf-8")
    return figures | {"response_tokens": sum(len(each["tokens"]) for group in groups for each in group["samples"])}


def both(setting: Setting, folder: Path) -> Figures:
    policy, reference = (common.load(setting.model, setting.dtype, variant) for variant in (1, 0))
    groups, _ = _candidates(folder)

    def score(groups: list[PromptGroup]) -> list[float]:
        ours = ways.packed(policy, groups, setting.token_budget)
        theirs = ways.packed(reference, groups, setting.token_budget)
        return [(one - other).sum().item() for one, other in zip(ours, theirs, strict=True)]

    return _measured(setting, groups, score)[0]


def free(setting: Setting, folder: Path) -> Figures:
    policy = common.load(setting.model, setting.dtype)
    groups, sampled = _candidates(folder)

    def score(groups: list[PromptGroup]) -> list[torch.Tensor]:
        ours = ways.packed(policy, groups, setting.token_budget)
        for one, other in zip(ours, sampled, strict=False):  # a warm-up has fewer
            (one - other[: len(one)]).sum().item()
        return ours

    figures, ours = _measured(setting, groups, score)
    flat_ours, flat_sampled = torch.cat(ours).tolist(), torch.cat(sampled).tolist()
    sums = [(one - other).sum().item() for one, other in zip(ours, sampled, strict=True)]
    return figures | {
        "sampled_to_ours": common.differences(flat_sampled, flat_ours),
        "response_sums": {"max": max(map(abs, sums)), "mean": statistics.fmean(map(abs, sums))},
    }


def exact(setting: Setting, folder: Path) -> Figures:
    """How far vLLM's log-probs, and ours, are from float32 one by one, over the first candidates of each prompt."""
    groups, sampled = _candidates(folder)
    each = max(1, setting.check // len(groups))
    few = [PromptGroup(group.prompt, group.responses[:each]) for group in groups]
    chosen = [values for at, values in enumerate(sampled) if at % setting.n < each]
    with torch.no_grad():
        exactly = torch.cat(ways.one_by_one(common.load(setting.model, "float32"), few)).tolist()
        ours = ways.packed(common.load(setting.model, setting.dtype), few, setting.token_budget)
    return {
        "sampled_to_float32": common.differences(torch.cat(chosen).tolist(), exactly),
        "ours_to_float32": common.differences(torch.cat(ours).tolist(), exactly),
    }


def _measured(setting: Setting, groups: list[PromptGroup], score: Any) -> tuple[Figures, Any]:
    few = [PromptGroup(groups[0].prompt, groups[0].responses[:2])]
    with torch.no_grad():
        return fresh.measure(lambda: score(groups), lambda: score(few), setting.seconds)


def _candidates(folder: Path) -> tuple[list[PromptGroup], list[torch.Tensor]]:
    """What was generated, and vLLM's log-probs of it: a tensor a response."""
    rows = json.loads((folder / "candidates.json").read_text(encoding="utf-8"))
    groups = [PromptGroup(row["prompt"], [sample["tokens"] for sample in row["samples"]]) for row in rows]
    return groups, [torch.tensor(sample["logprobs"]) for row in rows for sample in row["samples"]]


def _prompts(setting: Setting, vocab_size: int) -> list[list[int]]:
    """One prompt more than asked for, to warm up with."""
    wanted = setting.num_prompts + 1
    if setting.model != common.EMBEDDED:
        rows = common.candidates(setting, vocab_size)
        return [list(group.prompt) for group in rows] + [list(range(10, 10 + setting.prompt))]
    from prm_ray.arithmetic import make_problems
    from prm_ray.models import load_tokenizer, resolve_model
    from prm_ray.settings import ArithmeticSection

    tokenizer = load_tokenizer(resolve_model(setting.model))
    problems = iter(make_problems(60 * wanted, "benchmark", ArithmeticSection(min_operations=3, max_operations=3)))
    prompts = []
    for _ in range(wanted):
        text = ""
        tokens: list[int] = []
        while len(tokens) < setting.prompt:
            problem = next(problems)
            text += f"{problem.problem}\n{problem.solution}\n\n"
            tokens = tokenizer(text, add_special_tokens=False).input_ids
        prompts.append(tokens[-setting.prompt :])
    return prompts


def round_of(setting: Setting, folder: Path) -> dict[str, Figures]:
    run: dict[str, Figures] = {}
    for name in ("generate", "both", "free", "exact"):
        print(name, file=sys.stderr, flush=True)
        run[name] = fresh.run_fresh(f"benchmarks.generation:{name}", setting, folder)
        if "error" in run[name]:
            raise SystemExit(f"{name}: {run[name]['error']}")
    seconds = {name: statistics.median(run[name]["all_seconds"]) for name in ("generate", "both", "free")}
    shares = {f"{name}_share": seconds[name] / seconds["generate"] for name in ("both", "free")}
    return run | {"seconds": seconds, "shares": shares}


def show(rounds: list[dict[str, Figures]], setting: Setting) -> dict[str, Any]:
    tokens = rounds[0]["generate"]["response_tokens"]
    lines, summary = [], {}
    for name in ("generate", "both", "free"):
        figures = common.summary([one["seconds"][name] for one in rounds])
        shares = [one["shares"].get(f"{name}_share", 1.0) for one in rounds]
        peak = max(one[name]["peak_gib"] for one in rounds)
        summary[name] = figures | {"share": statistics.median(shares), "shares": shares, "peak_gib": peak}
        lines.append(
            [
                name,
                f"{tokens / figures['seconds']:.0f}",
                f"{figures['seconds']:.2f}",
                f"{figures['spread']:.0%}",
                f"{statistics.median(shares):.1%}",
                f"{min(shares):.1%} - {max(shares):.1%}",
                f"{peak:.2f}",
            ]
        )
    columns = ["", "resp. tok/s", "seconds", "spread", "of generation", "lowest - highest", "peak GiB"]
    common.print_table(f"{setting} generated by vLLM, then scored", columns, lines)
    last = rounds[-1]
    errors = {"vLLM's sampled log-probs to ours": last["free"]["sampled_to_ours"]} | {
        "vLLM's sampled log-probs to float32": last["exact"]["sampled_to_float32"],
        "ours to float32": last["exact"]["ours_to_float32"],
    }
    lines = [[name, f"{gap['max_difference']:.1e}", f"{gap['mean_difference']:.1e}"] for name, gap in errors.items()]
    sums = last["free"]["response_sums"]
    lines.append(["vLLM's to ours, added up over a response", f"{sums['max']:.1e}", f"{sums['mean']:.1e}"])
    common.print_table("differences of a token's log-prob", ["", "max", "mean"], lines)
    return {"summary": summary, "differences": errors, "response_sums": sums}


def main() -> None:
    args: argparse.Namespace = common.parse(common.flags(__doc__, n=8, prompts=8))
    if importlib.util.find_spec("vllm") is None:
        raise SystemExit("this benchmark generates with vLLM, which is not installed")
    setting = common.setting_of(args, spread=0.0)
    with fresh.shared_folder() as folder:
        rounds = [round_of(setting, folder) for _ in range(args.repeats)]
    common.write(args, setting, show(rounds, setting) | {"rounds": rounds})


if __name__ == "__main__":
    main()
