"""The weights that a `Trainer` moves: whole on every worker, here, or a part of each on every worker, in `sharding.py`.

Both hand the optimizer plain float32 tensors (`masters`) and, once a step, the gradient *summed* over all micro-batches
and workers; the trainer has divided by the global count before. What differs is who holds what and who talks when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prm_ray.core.forward import Reading
from prm_ray.core.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Value = TypeVar("Value")


def world() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) where no process group was started."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def total(values: Tensor) -> Tensor:
    """Added up over all workers, which must all call it."""
    if world()[1] > 1:
        values = values.to(torch.device("cuda") if torch.cuda.is_available() else "cpu")
        dist.all_reduce(values)
    return values


def collected(values: list[Value]) -> list[Value]:
    """Those of all workers, one worker's behind the other's; all must call it."""
    of_workers: list[list[Value]] = [values] * world()[1]
    if world()[1] > 1:
        dist.all_gather_object(of_workers, values)
    return [value for of_one in of_workers for value in of_one]


class Weights(Protocol):
    masters: list[Tensor]
    """What the optimizer moves: this worker's rows of every trained parameter, float32, in the model's order."""
    num_shards: int
    """Workers among which the rows are divided; 1 = everyone has all of them."""

    def num_passes(self, num_batches: int) -> int:
        """Forward and backward passes that this worker has to join in a step in which it has so many batches."""
        ...

    def read(self, batch: PackedBatch) -> Tensor:
        """A number a response token, [R], under the present weights."""
        ...

    def clear_grads(self) -> None: ...

    def collect_grads(self) -> None:
        """Take over what a backward pass left."""
        ...

    def sum_grads(self, loss: Tensor) -> list[Tensor]:
        """The step's gradient of every master; adds up `loss`, in place, over all workers."""
        ...

    def grad_norm(self, grads: Sequence[Tensor]) -> float:
        """Norm of the whole gradient, whoever holds it."""
        ...

    def show(self, values: Sequence[Tensor]) -> None:
        """Let the model compute with these values of the masters."""
        ...

    def rows(self, length: int) -> slice:
        """Which rows of a parameter with so many this worker holds."""
        ...

    def gathered(self, names: set[str] | None) -> dict[str, Tensor] | None:
        """The model's state with these names (none = all), whole, in the compute dtype; None = as the model has it.

        All workers must call it; only rank 0 gets the tensors.
        """
        ...


class WholeWeights:
    """Float32 masters beside the copy that runs in the compute dtype, made anew once a step, not at every forward.

    Gradients of all micro-batches are added in float32, then once over all workers in one call.
    """

    num_shards = 1

    def __init__(self, model: PreTrainedModel, compute_dtype: torch.dtype, reading: Reading):
        self._model, self._reading = model, reading
        self._parameters = trained_parameters(model)
        self.masters = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]
        # Parameters only: model.to() would round the frequencies of the rotary embedding as well.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(compute_dtype)
        self._flat_grad, self._grads = _flat_views(self.masters)

    def num_passes(self, num_batches: int) -> int:
        return num_batches

    def read(self, batch: PackedBatch) -> Tensor:
        return self._reading(self._model, batch)

    def clear_grads(self) -> None:
        self._flat_grad.zero_()

    def collect_grads(self) -> None:
        for grad, parameter in zip(self._grads, self._parameters, strict=True):
            if parameter.grad is not None:
                grad += parameter.grad
                parameter.grad = None

    def sum_grads(self, loss: Tensor) -> list[Tensor]:
        if world()[1] > 1:
            dist.all_reduce(loss)
            dist.all_reduce(self._flat_grad)
        return self._grads

    def grad_norm(self, grads: Sequence[Tensor]) -> float:
        # Of the parts: one float32 sum over 10^8 numbers is inexact.
        return torch.nn.utils.get_total_norm(grads).item()

    def show(self, values: Sequence[Tensor]) -> None:
        for value, parameter in zip(values, self._parameters, strict=True):
            parameter.data.copy_(value)

    def rows(self, length: int) -> slice:
        return slice(0, length)

    def gathered(self, names: set[str] | None) -> dict[str, Tensor] | None:
        return None


def trained_parameters(model: Any) -> list[Tensor]:
    """Those that require a gradient, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _flat_views(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A float32 buffer and views of it in the tensors' shapes: kept over all steps, summed over workers in one call."""
    flat = torch.zeros(sum(tensor.numel() for tensor in tensors), device=tensors[0].device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return flat, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
