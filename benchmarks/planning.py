"""Does `prm-ray plan` know the memory of a training step? Plan beside measured peak. `python -m benchmarks.planning`

Each case is a small random model through `prm_ray.trainer.Trainer`, in a process of its own (with `fsdp` two, over gloo
or NCCL). After a step on a few tokens, so that the optimizer's state is there, one step is measured in two ways:

  allocated  the most that torch's allocator had handed out at a time: on a GPU `torch.cuda.max_memory_allocated`, on
             a CPU the sum of all allocations and releases so far, which torch's profiler records
  resident   on a CPU, by how much the process grew above what it was after importing everything and one step of a
             tiny model: what the system sees, with the holes that malloc leaves and the buffers of matrix libraries

The plan is `planning.memory`, without its allowance, against `allocated`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks import common, fresh
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from prm_ray.planning.activations import Batch
from prm_ray.planning.memory import Training, forward_memory, total, training_memory
from prm_ray.planning.shapes import Shape

FEW = (8, 1, 8)
"""Prompt, responses and response tokens of a step that only makes the optimizer's state."""


@dataclass(frozen=True)
class Case:
    """What is measured: a model's shape, how it is trained (none = it only scores), and one batch."""

    shape: Shape
    how: Training | None
    dtype: str = "float32"
    prompt: int = 256
    responses: int = 2
    response: int = 640


_LLAMA = Shape(512, 10, 1408, 8, 2, 32_000, True)
_QWEN = Shape(512, 8, 1408, 8, 4, 24_000, False, kind="qwen3")
_LARGER = Shape(768, 12, 2048, 12, 4, 32_000, True)
_SMALL = Shape(384, 4, 1024, 6, 2, 16_000, True)
CASES = {
    "full": Case(_LLAMA, Training()),
    "full, checkpointing": Case(_LLAMA, Training(gradient_checkpointing=True)),
    "LoRA": Case(_LLAMA, Training(lora_rank=16)),
    "LoRA, checkpointing": Case(_LLAMA, Training(lora_rank=16, gradient_checkpointing=True)),
    "FSDP, 2 workers": Case(_LLAMA, Training("fsdp", 2)),
    "FSDP, 2 workers, checkpointing": Case(_LLAMA, Training("fsdp", 2, gradient_checkpointing=True)),
    "FSDP, 2 workers, LoRA": Case(_LLAMA, Training("fsdp", 2, lora_rank=16)),
    "Qwen3, frozen embeddings": Case(_QWEN, Training(freeze_embeddings=True)),
    "bfloat16": Case(_SMALL, Training(), "bfloat16", prompt=128, response=192),
    "scoring": Case(_LLAMA, None),
    "full, 100 million parameters": Case(_LARGER, Training(), response=896),
}
ON_GPU: dict[str, Any] = {"dtype": "bfloat16", "prompt": 1024, "responses": 8, "response": 1024}
"""The same cases where there is a GPU: more tokens, in the format that is trained in there."""


def planned(case: Case, batch: Batch, on_gpu: bool) -> dict[str, float]:
    """The plan's terms in bytes."""
    number = 2 if case.dtype == "bfloat16" else 4
    if case.how is None:
        return forward_memory(case.shape, batch, number, on_gpu=on_gpu)
    return training_memory(case.shape, case.how, batch, number, on_gpu)


def measure(setting: Setting, folder: Path) -> Figures:
    """Runs the case that `setting.model` names, on as many processes as it has workers; figures of the worst."""
    import torch
    import torch.multiprocessing as mp

    case = _case(setting)
    num_workers = case.how.num_workers if case.how else 1
    if common.device().type == "cuda" and num_workers > (have := torch.cuda.device_count()):
        return {"error": f"needs {num_workers} GPUs, there are {have}"}
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(_worker, args=(setting, meeting), nprocs=num_workers)  # pyright: ignore[reportPrivateImportUsage]
        found = [json.loads((Path(meeting) / f"{rank}.json").read_text()) for rank in range(num_workers)]
    return max(found, key=lambda figures: figures["allocated"])


def _case(setting: Setting) -> Case:
    import torch

    case = CASES[setting.model]
    return Case(case.shape, case.how, **ON_GPU) if torch.cuda.is_available() else case


def _worker(rank: int, setting: Setting, meeting: str) -> None:
    import torch
    import torch.distributed as dist

    from prm_ray.core.allocator import keep_freed_memory

    case = _case(setting)
    num_workers = case.how.num_workers if case.how else 1
    torch.set_num_threads(max(1, setting.threads // num_workers))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    else:
        keep_freed_memory()
    if num_workers > 1:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting}/meet", rank=rank, world_size=num_workers)
    tiny = Case(Shape(32, 1, 64, 2, 1, 256, True), case.how, case.dtype)
    _Work(tiny)(*FEW)  # imports and starts all there is
    figures = _measured(case)
    (Path(meeting) / f"{rank}.json").write_text(json.dumps(figures))
    if num_workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def _measured(case: Case) -> Figures:
    import torch

    gc.collect()
    memory = fresh.Memory()
    start = time.perf_counter()
    allocated, batch = allocated_in_a_step(case)
    on_gpu = torch.cuda.is_available()
    return {
        "allocated": allocated,
        "resident": None if on_gpu else memory.figures()["work_gib"] * 2**30,
        "seconds": time.perf_counter() - start,
        "batch": asdict(batch),
        "plan": planned(case, batch, on_gpu),
    }


def allocated_in_a_step(case: Case) -> tuple[float, Batch]:
    """The most bytes that torch had allocated at a time, from the making of a model to a step's end, and the step's
    batch."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        batch = _two_steps(case)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), batch
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        batch = _two_steps(case)
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))), batch


def _two_steps(case: Case) -> Batch:
    """A small step, which makes the optimizer's state, then the one whose memory is asked for."""
    work = _Work(case)
    work(*FEW)
    return work(case.prompt, case.responses, case.response)


class _Work:
    """A model of random weights, and one step of what the case does with it."""

    def __init__(self, case: Case):
        import torch

        from prm_ray.trainer import Schedule, Trainer

        model = _model(case)
        self._vocab = case.shape.vocab
        self._model = model.to(common.device()).eval().requires_grad_(False) if case.how is None else None
        if case.how is not None:
            how = case.how
            on = torch.device("cpu") if how.parallel == "fsdp" else common.device()  # as `stages.fit` does
            self._trainer = Trainer(
                model.to(on),
                Schedule(1e-6, 1000, 0.0),
                compute_dtype=getattr(torch, case.dtype),
                freeze_embeddings=how.freeze_embeddings,
                parallel=how.parallel,
                gradient_checkpointing=how.gradient_checkpointing,
            )

    def __call__(self, prompt: int, responses: int, response: int) -> Batch:
        """One step, or one pass of scoring, over a single batch of this size."""
        import torch

        from prm_ray.core.forward import response_logprobs
        from prm_ray.core.packing import pack

        size = Setting("", "", 1, prompt, responses, response, 0.0, 1, 0, 1, 0.0, 1)
        (batch,) = pack(common.candidates(size, self._vocab), 10**6)
        if self._model is None:
            self._trainer.step([batch], _loss, responses)
        else:
            with torch.no_grad():
                response_logprobs(self._model, batch)
        return Batch(len(batch.input_ids_T), len(batch.target_U))


def _loss(batch: Any, logprobs_R: Any) -> Any:
    import torch

    from prm_ray.core.objectives import cross_entropy

    sums_B = torch.stack([values.sum() for values in logprobs_R.split(batch.lengths)])
    return cross_entropy(sums_B, torch.ones_like(sums_B), 0.05)


def _model(case: Case) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    from prm_ray.adapters import AdapterSettings, add_adapter

    shape = case.shape
    config = (Qwen3Config if shape.kind == "qwen3" else LlamaConfig)(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.query // shape.heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
    )
    rank = case.how.lora_rank if case.how else 0
    stored = case.dtype if rank or case.how is None else "float32"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, stored), attn_implementation="sdpa")
    return add_adapter(model, AdapterSettings(rank, 2.0 * rank), seed=0) if rank else model


def show(found: dict[str, Figures]) -> None:
    lines = []
    for name, run in found.items():
        if "error" in run:
            lines.append([name, "failed: " + run["error"][:60], "", "", "", ""])
            continue
        plan = total(run["plan"])
        resident = run["resident"]
        lines.append(
            [
                name,
                f"{plan / 2**20:.0f}",
                f"{run['allocated'] / 2**20:.0f}",
                f"{plan / run['allocated']:.3f}",
                f"{resident / 2**20:.0f}" if resident else "",
                f"{run['seconds']:.0f}",
            ]
        )
    common.print_table("MiB a worker", ["", "plan", "allocated", "plan / allocated", "resident", "seconds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", metavar="CASE", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--device", choices=["cpu", "cuda"], help="none = a GPU if there is one")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="over all workers")
    parser.add_argument("--out", type=Path, help="write everything as JSON; cases that are in it stay")
    args = parser.parse_args()
    if unknown := sorted(set(args.cases) - CASES.keys()):
        parser.error(f"--cases {unknown[0]!r}: must be of {', '.join(CASES)}")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.device == "cuda" and common.device().type != "cuda":
        parser.error("--device cuda: torch sees no GPU")
    found: dict[str, Figures] = {}
    if args.out and args.out.exists():
        found = json.loads(args.out.read_text(encoding="utf-8"))["cases"]
    with fresh.shared_folder() as folder:
        for name in args.cases:
            setting = Setting(name, "", 1, 1, 1, 1, 0.0, 1, 1, args.threads, 0.0, 1)
            found[name] = fresh.run_fresh("benchmarks.planning:measure", setting, folder)
            if args.out:
                content = {"machine": common.machine(), "cases": found}
                args.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
