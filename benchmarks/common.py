"""What all benchmarks share: their settings and flags, models, made-up candidates, and how results are shown.

Nothing here needs more than torch and transformers, unless the model is a folder or the embedded one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.core.packing import PromptGroup

if TYPE_CHECKING:
    import torch

EMBEDDED = "smollm2-135m-instruct"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "heads": (2, 1)},
    "tiny-152k": {
        "vocab_size": 151_936,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "heads": (2, 1),
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "heads": (14, 2),
    },
    "qwen2.5-1.5b": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "heads": (12, 2),
    },
    "qwen2.5-7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "heads": (28, 4),
        "tie_word_embeddings": False,
    },
}
"""Random-weight models of these shapes; `heads` are those of queries and of keys. Embeddings are tied unless said."""


@dataclass(frozen=True)
class Setting:
    """What one measurement runs on; goes as JSON to the process that measures."""

    model: str
    dtype: str
    num_prompts: int
    prompt: int  # tokens
    n: int  # candidates a prompt
    response: int  # tokens, on average
    spread: float  # response lengths are uniform in response * (1 - spread, 1 + spread)
    batch: int  # rows of a padded batch
    token_budget: int  # tokens of a packed batch
    threads: int
    seconds: float  # a measured way is repeated within its process until so much time is over
    check: int  # candidates that are compared with float32

    def __str__(self) -> str:
        size = f"{self.num_prompts} x ({self.prompt} + {self.n} x {self.response}) tokens"
        return f"{self.model}, {self.dtype}, {size}, {self.threads} threads"


def flags(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The flags that make a `Setting`; `defaults` are those of one script, by flag name."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED, help=f"{', '.join(SHAPES)}, or what prm_ray loads")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--prompts", type=int, default=1, help="number of prompts")
    parser.add_argument("--prompt", type=int, default=250, help="tokens of a prompt")
    parser.add_argument("--n", type=int, default=64, help="candidates a prompt")
    parser.add_argument("--response", type=int, default=100, help="tokens of a candidate, on average")
    parser.add_argument("--spread", type=float, default=0.2, help="lengths vary by this share of the average")
    parser.add_argument("--batch", type=int, default=4, help="rows of a padded batch (the paper's code: 4)")
    parser.add_argument("--token-budget", type=int, default=8192, help="tokens of a packed batch")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a way, in alternating order")
    parser.add_argument("--seconds", type=float, default=3.0, help="time a way again until so much time is over")
    parser.add_argument("--check", type=int, default=8, help="candidates compared with a float32 pass")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    parser.set_defaults(**defaults)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, with those refused that leave nothing to measure or nowhere to write."""
    args = parser.parse_args()
    for name in ("prompts", "prompt", "n", "response", "batch", "token_budget", "threads", "repeats", "check"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if not 0 <= args.spread < 1:
        parser.error(f"--spread {args.spread}: must be from 0 to below 1")
    if args.out and not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.absolute().parent}")
    return args


def setting_of(args: argparse.Namespace, **changes: Any) -> Setting:
    values = {name: getattr(args, name) for name in Setting.__annotations__ if name != "num_prompts"}
    return Setting(**({"num_prompts": args.prompts} | values | changes))


def device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(name: str, dtype: str, variant: int = 0) -> Any:
    """A model in eval mode. Variant 1 has other weights, for a reference; float32 weights are the bfloat16 ones."""
    import torch

    from prm_ray.core.allocator import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()  # as prm_ray's own loading does; so all ways have it
    if name in SHAPES:
        model = _random_model(name, variant)
    else:
        from prm_ray.models import load_model

        model = load_model(name, "bfloat16")
        if variant:
            _disturb(model, variant)
    return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def _random_model(name: str, seed: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = dict(SHAPES[name])
    heads, key_value_heads = shape.pop("heads")
    shape = {
        "tie_word_embeddings": True,
        "max_position_embeddings": 32_768,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | shape
    config = Qwen2Config(num_attention_heads=heads, num_key_value_heads=key_value_heads, **shape)
    torch.manual_seed(seed)
    with device():
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def _disturb(model: Any, seed: int) -> None:
    """Noise of a hundredth of each matrix's own spread: another model that is as good for all that is measured."""
    import torch

    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data += 0.01 * parameter.std() * torch.randn_like(parameter)


def candidates(setting: Setting, vocab_size: int) -> list[PromptGroup]:
    """Random tokens, always the same ones: candidates of a prompt share the prompt and nothing else."""
    rng = random.Random(0)
    top = min(vocab_size, 40_000)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(10, top) for _ in range(length)]

    def length() -> int:
        return max(1, round(setting.response * (1 + rng.uniform(-setting.spread, setting.spread))))

    return [
        PromptGroup(tokens(setting.prompt), [tokens(length()) for _ in range(setting.n)])
        for _ in range(setting.num_prompts)
    ]


def num_response_tokens(groups: Iterable[PromptGroup]) -> int:
    return sum(len(response) for group in groups for response in group.responses)


def machine() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "gpu": torch.cuda.is_available(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, and spread = (slowest - fastest) / median."""
    median = statistics.median(seconds)
    return {"seconds": median, "spread": (max(seconds) - min(seconds)) / median, "runs": len(seconds)}


def differences(ours: Sequence[float], exact: Sequence[float]) -> dict[str, float]:
    gaps = [abs(one - other) for one, other in zip(ours, exact, strict=True)]
    return {"max_difference": max(gaps), "mean_difference": sum(gaps) / len(gaps)}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    print(f"\n{title}")
    for row in (columns, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))


def write(args: argparse.Namespace, setting: Setting, results: dict[str, Any]) -> None:
    """Write machine, setting and results as JSON, if asked for."""
    if args.out:
        content = {"machine": machine(), "setting": asdict(setting), "repeats": args.repeats, **results}
        args.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten: {args.out}")
