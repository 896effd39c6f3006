"""FSDP2 weights for a `Trainer`: a model too large for one GPU, cut over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prm_ray.core.forward import Reading
from prm_ray.core.packing import PackedBatch
from prm_ray.weights import trained_parameters, world

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ShardedWeights:
    """FSDP2: every worker holds an equal part of each parameter, in float32, and of its gradient and moments.

    A layer is gathered in the compute dtype when a pass comes to it and dropped behind it; its gradient is summed in
    float32 straight into the parts. Everyone must therefore run the same number of passes at the same time.
    """

    def __init__(self, model: PreTrainedModel, compute_dtype: torch.dtype, reading: Reading):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("sharded weights need workers that meet in torch.distributed: start a process group first")
        self._model, self._dtype, self._device = model, compute_dtype, _device()
        self._rank, self.num_shards = world()
        for parameter in trained_parameters(model):
            parameter.data = parameter.data.float()
        mesh = init_device_mesh(self._device.type, (self.num_shards,))
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        root = _Reader(model, reading)
        self._root: Any = fully_shard(root, mesh=mesh, mp_policy=policy)
        for module in root.modules():
            if isinstance(module, FSDPModule):  # sums, not means
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
        self._parameters: list[Any] = [*trained_parameters(model)]
        self.masters: list[Tensor] = [
            parameter.detach().to_local() for parameter in self._parameters
        ]  # same memory as the shard

    def num_passes(self, num_batches: int) -> int:
        most = torch.tensor(num_batches, device=self._device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most.item())

    def read(self, batch: PackedBatch) -> Tensor:
        values_R = self._root(batch)
        if not torch.is_grad_enabled():  # else backward drops them; left gathered they would outlive the next step
            self._root.reshard()
        return values_R

    def clear_grads(self) -> None:
        for master, parameter in zip(self.masters, self._parameters, strict=True):
            master.grad = parameter.grad = (
                None  # the optimizer's too, else last step's gradient stays beside this one's
            )

    def collect_grads(self) -> None:
        """Nothing to do: each pass has added to the gradient of the parts."""

    def sum_grads(self, loss: Tensor) -> list[Tensor]:
        dist.all_reduce(loss)
        return [
            torch.zeros_like(master) if parameter.grad is None else parameter.grad.to_local()
            for master, parameter in zip(self.masters, self._parameters, strict=True)
        ]

    def grad_norm(self, grads: Sequence[Tensor]) -> float:
        square = torch.nn.utils.get_total_norm(grads) ** 2
        dist.all_reduce(square)
        return math.sqrt(square.item())

    def show(self, values: Sequence[Tensor]) -> None:
        for value, master in zip(values, self.masters, strict=True):
            if value is not master:
                master.copy_(value)

    def rows(self, length: int) -> slice:
        """As `torch.chunk` cuts: the last workers may have fewer, or none."""
        size = -(-length // self.num_shards)
        return slice(min(length, self._rank * size), min(length, (self._rank + 1) * size))

    def gathered(self, names: set[str] | None) -> dict[str, Tensor] | None:
        whole: dict[str, Tensor] = {}
        for name, part in self._model.state_dict().items():
            if names is not None and name not in names:
                continue
            tensor = part.full_tensor() if hasattr(part, "full_tensor") else part
            if self._rank == 0:
                whole[name] = tensor.to("cpu", self._dtype if tensor.is_floating_point() else None)
        return whole


class _Reader(nn.Module):
    """The whole way to what is read as one module, so that the output layer, too, is gathered while it is used."""

    def __init__(self, model: PreTrainedModel, reading: Reading):
        super().__init__()
        self.model, self.reading = model, reading

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.reading(self.model, batch).clone()  # FSDP2 hooks its output, which must not be a view


def _layers(model: Any) -> list[Any]:
    """The decoder layers, as transformers names their classes."""
    return [module for module in model.modules() if type(module).__name__ in model._no_split_modules]


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
