"""`Trainer`: one optimizer step over packed batches. It knows torch, not Ray; workers meet in `torch.distributed`.

Weights live twice when the model computes in bfloat16: float32 masters that the optimizer moves, and the bfloat16 copy
that runs, made anew once a step rather than at every forward. Gradients of all micro-batches are added in float32, then
once over all workers, and were divided by the global count before: how a step is cut changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from prm_ray.core.forward import check_model, response_logprobs
from prm_ray.core.packing import PackedBatch
from prm_ray.errors import NonFiniteLossError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[PackedBatch, Tensor], Tensor]
"""A packed batch and its response log-probs [R] -> the summed loss of its responses."""
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
    loss: float  # mean over the responses of the step
    grad_norm: float  # before clipping
    lr: float


class Trainer:
    """AdamW (betas 0.9, 0.95) with gradient clipping over any model whose responses can be packed.

    `model` is given in float32; `compute_dtype` is the number format of forward and backward. `norm_lr` is the peak
    learning rate of vectors (gains of the norms, biases) where it differs from that of the matrices: gains are some
    hundred times larger than the entries of a matrix, and at the same rate they hardly move in a short run.
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
    ):
        check_model(model)
        self.model = model
        self.schedule = schedule
        self.num_steps = 0
        self._grad_clip = grad_clip
        if freeze_embeddings:
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.requires_grad_(False)
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._masters = [parameter.detach().float().clone() for parameter in moving]
        model.to(compute_dtype).train()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = self._masters[0].device.type in ("cuda", "cpu")
        groups = self._parameter_groups(weight_decay, 1.0 if norm_lr is None else norm_lr / schedule.lr)
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.95), fused=fused)
        self._flat_grad, self._grads = _flat_views(self._masters)
        self._cycle_sums: list[Tensor] = []

    def step(self, batches: Sequence[PackedBatch], loss: Loss, count: int) -> StepResult:
        """One optimizer step; `count` is the number of responses (or tokens) of the step over all workers.

        Raises `NonFiniteLossError` on every worker, before any weight moves, if the loss or gradient is not finite.
        """
        self._flat_grad.zero_()
        total = torch.zeros((), device=self._flat_grad.device)
        for batch in batches:
            mean = loss(batch, response_logprobs(self.model, batch)) / count
            mean.backward()
            total += mean.detach()
            self._move_grads()
        self._add_over_workers(total, self._flat_grad)
        norm = torch.nn.utils.get_total_norm(self._grads)  # of the parts: one float32 sum over 10^8 numbers is inexact
        if not math.isfinite(total.item()) or not math.isfinite(norm.item()):
            raise NonFiniteLossError(
                f"loss {total.item()} and gradient norm {norm.item()} at step {self.num_steps}: not finite; "
                "lower the learning rate (lr, norm_lr) or train.beta, or compute in float32 (model.dtype)"
            )
        lr = self.schedule.at(self.num_steps)
        self._move_weights(norm.item(), lr)
        self.num_steps += 1
        self._end_cycle()
        return StepResult(total.item(), norm.item(), lr)

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch) -> Tensor:
        """Response log-probs [R] under the present weights, for held-out measurements."""
        return response_logprobs(self.model, batch)

    def save_state(self, path: Path) -> None:
        """Everything an exact resume needs, as one safetensors file (masters and moments; no pickle)."""
        tensors: dict[str, Tensor] = {"num_steps": torch.tensor(self.num_steps)}
        for number, master in enumerate(self._masters):
            tensors[f"{number}.master"] = master
            if self._cycle_sums:
                tensors[f"{number}.cycle_sum"] = self._cycle_sums[number]
            for name, value in self._optimizer.state[master].items():
                tensors[f"{number}.{name}"] = value
        save_file(tensors, path)

    def load_state(self, path: Path) -> None:
        """Go on exactly where `save_state` stood."""
        tensors = load_file(path)
        self.num_steps = int(tensors["num_steps"])
        for number, (master, parameter) in enumerate(zip(self._masters, self._parameters, strict=True)):
            master.copy_(tensors[f"{number}.master"])
            parameter.data.copy_(master)
            if f"{number}.cycle_sum" in tensors:
                self._cycle_sums.append(tensors[f"{number}.cycle_sum"].to(master.device))
            names = [name for name in _MOMENTS if f"{number}.{name}" in tensors]
            self._optimizer.state[master] = {name: tensors[f"{number}.{name}"].to(master.device) for name in names}

    def use_average(self) -> None:
        """Put the mean of the weights at the ends of the cycles so far into the model, once training is over.

        One end point is noisy, the mean of several lies nearer to the middle of where they agree: stochastic weight
        averaging (Izmailov et al. 2018, arXiv 1803.05407). With one cycle this changes nothing.
        """
        num_ends = sum(end <= self.num_steps for end in self.schedule.cycle_ends())
        if num_ends > 1:
            for parameter, total in zip(self._parameters, self._cycle_sums, strict=True):
                parameter.data.copy_(total / num_ends)

    def save_model(self, folder: Path) -> None:
        """Write a plain Hugging Face model folder in the compute dtype."""
        self.model.save_pretrained(folder)

    def _parameter_groups(self, weight_decay: float, norm_factor: float) -> list[dict[str, Any]]:
        """Matrices, and vectors: at `norm_factor` times their learning rate and without weight decay, as usual."""
        matrices = [master for master in self._masters if master.ndim > 1]
        vectors = [master for master in self._masters if master.ndim <= 1]
        groups = [
            {"params": matrices, "factor": 1.0, "weight_decay": weight_decay},
            {"params": vectors, "factor": norm_factor, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _move_grads(self) -> None:
        for grad, parameter in zip(self._grads, self._parameters, strict=True):
            if parameter.grad is not None:
                grad += parameter.grad
                parameter.grad = None

    def _end_cycle(self) -> None:
        if self.schedule.cycles == 1 or self.num_steps not in self.schedule.cycle_ends():
            return
        if not self._cycle_sums:
            self._cycle_sums = [torch.zeros_like(master) for master in self._masters]
        torch._foreach_add_(self._cycle_sums, self._masters)

    def _add_over_workers(self, *tensors: Tensor) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def _move_weights(self, norm: float, lr: float) -> None:
        self._flat_grad.mul_(min(1.0, self._grad_clip / (norm + 1e-6)))
        for master, grad in zip(self._masters, self._grads, strict=True):
            master.grad = grad
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self._optimizer.step()
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            parameter.data.copy_(master)


def _flat_views(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A float32 buffer and views of it in the tensors' shapes: kept over all steps, summed over workers in one call."""
    flat = torch.zeros(sum(tensor.numel() for tensor in tensors), device=tensors[0].device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return flat, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
