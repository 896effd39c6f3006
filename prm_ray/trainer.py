"""`Trainer`: one optimizer step over packed batches. It knows torch, not Ray; workers meet in `torch.distributed`.

The optimizer moves float32 masters, whatever the model computes in; `weights.py` holds them, whole or a shard a worker.
Gradients of all micro-batches and workers are added in float32, and were divided by the global count before: how a step
is cut changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prm_ray.adapters import has_adapter, save_weights
from prm_ray.core.forward import Reading, causal_lm, response_logprobs
from prm_ray.core.packing import PackedBatch, PromptGroup, pack, unpack
from prm_ray.core.support import check_model
from prm_ray.errors import NonFiniteLossError
from prm_ray.sharding import ShardedWeights
from prm_ray.trainerstate import StoredState, write_shard
from prm_ray.weights import Weights, WholeWeights, world

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[PackedBatch, Tensor], Tensor]
"""A packed batch and what was read at its response tokens [R], mostly log-probs -> the summed loss of its responses."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Schedule:
    """In each cycle a linear warm-up, then a cosine down to a tenth of the peak."""

    lr: float
    total_steps: int
    warmup_ratio: float
    cycles: int = 1

    def at(self, step: int) -> float:
        """Learning rate of the step with this number, from 0."""
        ends = self.cycle_ends()
        cycle = next(number for number, end in enumerate(ends) if step < end or end == ends[-1])
        start = ends[cycle - 1] if cycle else 0
        length, step = ends[cycle] - start, step - start
        warmup_steps = max(1, math.ceil(self.warmup_ratio * length))
        if step < warmup_steps:
            return self.lr * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, length - warmup_steps)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def cycle_ends(self) -> list[int]:
        """Numbers of steps after which a cycle is over; the last is `total_steps`."""
        cycles = max(1, min(self.cycles, self.total_steps))
        return [self.total_steps * (cycle + 1) // cycles for cycle in range(cycles)]


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean over what the objective counts in the step
    grad_norm: float  # before clipping
    lr: float


class Trainer:
    """AdamW (betas 0.9, 0.95) with gradient clipping over any model whose responses can be packed.

    `model` is given in float32 (under an adapter, all that the adapter freezes in any format); `compute_dtype` is the
    number format of forward and backward. `norm_lr` is the peak learning rate of vectors (gains of the norms, biases)
    where it differs from that of the matrices: gains are some hundred times larger than the entries of a matrix, and at
    the same rate they hardly move in a short run; `head_lr` is that of a value head. `parallel` is `ddp` (`weights.py`)
    or `fsdp` (`sharding.py`); with `fsdp` every worker must call every method, as often as the others.
    `gradient_checkpointing` keeps one activation in each layer and computes the rest again in backward. `reading` is
    what losses are given of a batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        *,
        compute_dtype: torch.dtype,
        weight_decay: float = 0.0,
        grad_clip: float = 1.0,
        freeze_embeddings: bool = False,
        norm_lr: float | None = None,
        head_lr: float | None = None,
        parallel: str = "ddp",
        gradient_checkpointing: bool = False,
        reading: Reading = response_logprobs,
    ):
        check_model(model)
        self.model = model
        self.schedule = schedule
        self.num_steps = 0
        self._compute_dtype, self._grad_clip = compute_dtype, grad_clip
        if freeze_embeddings:
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                if module is not None:
                    module.requires_grad_(False)
        if gradient_checkpointing:
            causal_lm(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        self._trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        kinds: dict[str, type[WholeWeights] | type[ShardedWeights]] = {"ddp": WholeWeights, "fsdp": ShardedWeights}
        self._weights: Weights = kinds[parallel](model, compute_dtype, reading)
        self._masters = self._weights.masters
        groups = self._parameter_groups(weight_decay, (norm_lr or schedule.lr), (head_lr or schedule.lr))
        fused = self._masters[0].device.type in ("cuda", "cpu")
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.95), fused=fused)
        self._cycle_sums: list[Tensor] = []

    @property
    def is_sharded(self) -> bool:
        """Every worker holds a part of the weights, so all must take part in whatever uses them."""
        return self._weights.num_shards > 1

    def step(self, batches: Sequence[PackedBatch], loss: Loss, count: float) -> StepResult:
        """One optimizer step; `count` is what the loss is a mean over, responses or pairs or tokens, over
        all workers.

        A worker may have fewer batches than the others, or none. Raises `NonFiniteLossError` on every worker, before
        any weight moves, if the loss or gradient is not finite.
        """
        self._weights.clear_grads()
        total = torch.zeros((), device=self._masters[0].device)
        num_idle = self._weights.num_passes(len(batches)) - len(batches)
        for batch in batches:
            mean = loss(batch, self._weights.read(batch)) / count
            mean.backward()
            total += mean.detach()
            self._weights.collect_grads()
        for _ in range(num_idle):
            (0.0 * self._weights.read(_smallest_batch()).sum()).backward()
        grads = self._weights.sum_grads(total)
        norm = self._weights.grad_norm(grads)
        if not math.isfinite(total.item()) or not math.isfinite(norm):
            raise NonFiniteLossError(
                f"loss {total.item()} and gradient norm {norm} at step {self.num_steps}: not finite; "
                "lower the learning rate (lr, norm_lr) or train.beta, or compute in float32 (model.dtype)"
            )
        lr = self.schedule.at(self.num_steps)
        self._move_weights(grads, norm, lr)
        self.num_steps += 1
        self._end_cycle()
        return StepResult(total.item(), norm, lr)

    @torch.no_grad()
    def preview(self, groups: Sequence[PromptGroup], token_budget: int) -> list[list[Tensor]]:
        """What is read at every token [T] of every response of every group under the present weights, without gradient,
        on the CPU."""
        batches = pack(groups, token_budget)
        found = [[torch.zeros(0)] * len(group.responses) for group in groups]
        num_idle = self._weights.num_passes(len(batches)) - len(batches)  # before any: workers talk in one order
        for batch in batches:
            for (group, response), logprobs_T in unpack(self._weights.read(batch).cpu(), batch):
                found[group][response] = logprobs_T
        for _ in range(num_idle):
            self._weights.read(_smallest_batch())
        return found

    @property
    def has_state(self) -> bool:
        """This worker has a part of a checkpoint to write."""
        return self.is_sharded or world()[0] == 0

    def save_state(self, folder: Path) -> None:
        """This worker's share of everything an exact resume needs, a safetensors file (masters, moments; no pickle)."""
        tensors: dict[str, Tensor] = {"num_steps": torch.tensor(self.num_steps)}
        for number, master in enumerate(self._masters):
            tensors[f"{number}.master"] = master
            if self._cycle_sums:
                tensors[f"{number}.cycle_sum"] = self._cycle_sums[number]
            for name, value in self._optimizer.state[master].items():
                tensors[f"{number}.{name}"] = value
        write_shard(folder, tensors, world()[0] if self.is_sharded else 0, self._weights.num_shards)

    def load_state(self, folder: Path) -> None:
        """Go on exactly where `save_state` stood; the folder holds the files of all workers, now maybe others."""
        with StoredState(folder) as stored:
            self.num_steps = int(stored.scalar("num_steps"))
            for number, master in enumerate(self._masters):
                names = [name for name in ("master", "cycle_sum", *_MOMENTS) if f"{number}.{name}" in stored]
                found = {name: stored.read(f"{number}.{name}", self._weights.rows).to(master.device) for name in names}
                master.copy_(found.pop("master"))
                if "cycle_sum" in found:
                    self._cycle_sums.append(found.pop("cycle_sum"))
                self._optimizer.state[master] = found
        self._weights.show(self._masters)

    def use_average(self) -> None:
        """Put the mean of the weights at the ends of the cycles so far into the model, once training is over.

        One end point is noisy, the mean of several lies nearer to the middle of where they agree: stochastic weight
        averaging (Izmailov et al. 2018, arXiv 1803.05407). With one cycle this changes nothing.
        """
        num_ends = sum(end <= self.num_steps for end in self.schedule.cycle_ends())
        if num_ends > 1:
            self._weights.show([total / num_ends for total in self._cycle_sums])

    def save_model(self, folder: Path) -> None:
        """Write a plain Hugging Face model folder, or the adapter alone, in the compute dtype; rank 0 does."""
        tensors = self._weights.gathered(set(self._trained) if has_adapter(self.model) else None)
        if world()[0] == 0:
            save_weights(self.model, folder, tensors, self._compute_dtype)

    def _parameter_groups(self, weight_decay: float, norm_lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Matrices; vectors, without weight decay as usual; and a value head. Factors are to the schedule's rate."""
        matrices: list[Tensor] = []
        vectors: list[Tensor] = []
        head: list[Tensor] = []
        for name, master in zip(self._trained, self._masters, strict=True):
            (head if name.startswith("score.") else matrices if master.ndim > 1 else vectors).append(master)
        kinds = ((matrices, self.schedule.lr, weight_decay), (vectors, norm_lr, 0.0), (head, head_lr, 0.0))
        return [
            {"params": masters, "factor": lr / self.schedule.lr, "weight_decay": decay}
            for masters, lr, decay in kinds
            if masters
        ]

    def _end_cycle(self) -> None:
        if self.schedule.cycles == 1 or self.num_steps not in self.schedule.cycle_ends():
            return
        if not self._cycle_sums:
            self._cycle_sums = [torch.zeros_like(master) for master in self._masters]
        torch._foreach_add_(self._cycle_sums, self._masters)

    def _move_weights(self, grads: Sequence[Tensor], norm: float, lr: float) -> None:
        torch._foreach_mul_(list(grads), min(1.0, self._grad_clip / (norm + 1e-6)))
        for master, grad in zip(self._masters, grads, strict=True):
            master.grad = grad
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self._optimizer.step()
        self._weights.show(self._masters)


def _smallest_batch() -> PackedBatch:
    """For a worker that has nothing to do while the others run a pass it is needed for."""
    return pack([PromptGroup([0], [[0]])], 2)[0]
