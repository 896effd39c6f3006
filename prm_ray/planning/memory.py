"""Peak memory of a worker, term by term. Pure arithmetic; docs/planning.md has the reason of each term.

A step's memory is what is always held (weights, optimizer) plus what the worst of a few moments needs. A moment is a
list of terms too, so a plan can say what fills a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from prm_ray.planning.activations import (
    FLOAT,
    Batch,
    backward_of_layer,
    forward_of_layer,
    kept_in_layer,
    last_norm,
    output_layer,
    scored_output_layer,
)
from prm_ray.planning.shapes import Shape

Terms = dict[str, float]
"""What it is -> bytes."""
_MASTER, _SUMMED, _MOMENTS, _AVERAGE = FLOAT, FLOAT, 2 * FLOAT, FLOAT
"""Bytes a trained parameter: float32 master, float32 sum of gradients, two moments of AdamW, sum of cycle ends."""


@dataclass(frozen=True)
class Training:
    """What of a training section decides memory."""

    parallel: str = "ddp"
    num_workers: int = 1
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    freeze_embeddings: bool = False
    cycles: int = 1

    def trained(self, shape: Shape) -> int:
        """Parameters that the optimizer moves."""
        if self.lora_rank:
            return shape.adapter_parameters(self.lora_rank, self.lora_targets)
        return shape.parameters - (shape.outside_parameters - shape.hidden if self.freeze_embeddings else 0)

    @property
    def shards(self) -> int:
        return self.num_workers if self.parallel == "fsdp" else 1

    @property
    def trains_head(self) -> bool:
        return not self.lora_rank and not self.freeze_embeddings


def total(terms: Terms) -> float:
    return sum(terms.values())


def training_memory(shape: Shape, how: Training, batch: Batch, number: int, on_gpu: bool = True) -> Terms:
    """Peak of one worker over an optimizer step, in which the optimizer's state is already there."""
    held, step = _held(shape, how, number), _Step(shape, how, batch, number, on_gpu)
    return {name: size for name, size in (held | max(step.moments(), key=total)).items() if size}


def forward_memory(shape: Shape, batch: Batch, number: int, adapter: int = 0, on_gpu: bool = True) -> Terms:
    """Peak of a worker that only scores; `adapter` are the parameters of an adapter over the model."""
    return {
        "weights": number * (shape.parameters + adapter),
        "activations of one layer": batch.tokens * forward_of_layer(shape, number),
        "output layer": scored_output_layer(shape, number, batch, on_gpu),
    }


def _held(shape: Shape, how: Training, number: int) -> Terms:
    trained, shards = how.trained(shape), how.shards
    total_parameters = shape.parameters + (trained if how.lora_rank else 0)
    if how.parallel == "fsdp":  # the masters are the weights; what is frozen stays as it was loaded
        frozen = (total_parameters - trained) * (number if how.lora_rank else FLOAT)
        held = {"weights": frozen / shards, "float32 masters": _MASTER * trained / shards}
    else:
        held = {
            "weights": float(number * total_parameters),
            "float32 masters": float(_MASTER * trained),
            "float32 gradients": float(_SUMMED * trained),
        }
    held["optimizer moments"] = _MOMENTS * trained / shards
    if how.cycles > 1:
        held["weight averaging"] = _AVERAGE * trained / shards
    return held


class _Step:
    """The moments of a step that may be its worst."""

    def __init__(self, shape: Shape, how: Training, batch: Batch, number: int, on_gpu: bool):
        self._shape, self._how, self._batch, self._number, self._on_gpu = shape, how, batch, number, on_gpu
        self._layer = kept_in_layer(shape, number, how.lora_rank) * batch.tokens
        self._backward = backward_of_layer(shape, number) * batch.tokens
        self._inputs = number * shape.hidden * batch.tokens
        self._trained_layer = (how.trained(shape) - self._trained_outside) / shape.layers

    @property
    def _trained_outside(self) -> float:
        """Trained parameters that are in no layer."""
        if self._how.lora_rank:
            return 0
        return self._shape.hidden if self._how.freeze_embeddings else self._shape.outside_parameters

    def moments(self) -> list[Terms]:
        last = self._shape.layers
        return [self._head(), self._in_layer(last), self._in_layer(1), self._end()]

    def _head(self) -> Terms:
        """Between forward and backward: all activations are there, and the output layer works."""
        return self._kept(self._shape.layers, recomputing=False) | {
            "output layer": output_layer(self._shape, self._number, self._batch, self._how.trains_head, self._on_gpu),
            **self._gradients(0),
        }

    def _in_layer(self, layer: int) -> Terms:
        """Backward in this layer, from 1: those above it have their gradients, those below their activations."""
        return (
            self._kept(layer, recomputing=self._how.gradient_checkpointing)
            | {"backward of one layer": self._backward}
            | self._gradients(self._shape.layers - layer)
        )

    def _end(self) -> Terms:
        """Backward is through: every weight has its gradient, and that of the embedding table is being added."""
        table = self._shape.table if self._how.trains_head else 0
        adding = self._number if self._shape.tied else 0  # a gradient of its own takes the place, a second one is added
        casting = 0 if self._on_gpu or self._number == FLOAT else FLOAT  # a CPU casts a whole gradient to add it
        return {
            "adding the embedding's gradient": float(table * max(adding, casting)),
            **self._gradients(self._shape.layers),
        }

    def _kept(self, layers: int, recomputing: bool) -> Terms:
        """Activations of so many layers; with checkpointing their inputs, and one whole layer if `recomputing`."""
        outside = last_norm(self._shape, self._number, self._how.lora_rank) * self._batch.tokens
        if layers < self._shape.layers:
            outside = 0.0
        if not self._how.gradient_checkpointing:
            return {"activations": layers * self._layer + outside}
        return {"activations": layers * self._inputs + outside + (self._layer if recomputing else 0.0)}

    def _gradients(self, layers_done: int) -> Terms:
        """Gradients of the output layer and of so many layers, and with `fsdp` what is gathered while it is used."""
        outside, layer = self._trained_outside, self._trained_layer
        if self._how.parallel != "fsdp":
            done = self._number * (self._table_gradient + layers_done * layer)
            if layers_done == self._shape.layers:
                done = self._number * (outside + layers_done * layer)
            return {"gradients": done}
        return self._sharded_gradients(layers_done)

    @property
    def _table_gradient(self) -> float:
        """Trained parameters of the output layer, whose gradient comes first."""
        return self._shape.table if self._how.trains_head else 0.0

    def _sharded_gradients(self, layers_done: int) -> Terms:
        shape, number, shards = self._shape, self._number, self._how.shards
        trained, at_end = self._how.trained(shape), layers_done == shape.layers
        summed = trained if self._batch.per_step > 1 or at_end else layers_done * self._trained_layer
        reducing = self._trained_outside if at_end else self._trained_layer if layers_done else 0.0
        frozen_too = shape.layer_parameters + (trained / shape.layers if self._how.lora_rank else 0)
        return {
            "float32 gradients": FLOAT * summed / shards,
            "gathered outside layers": float(number * shape.outside_parameters),
            "gathered layers": float(0 if at_end else _GATHERED[self._on_gpu] * number * frozen_too),
            "gradients": number * max(self._table_gradient, self._trained_outside if at_end else 0.0)
            + number * (0 if at_end else self._trained_layer if layers_done else 0),
            "summing gradients": _REDUCED[self._on_gpu] * FLOAT * reducing,
        }


_GATHERED = {False: 1, True: 2}
"""Layers whose weights are gathered at once: on a GPU the next comes while one is used."""
_REDUCED = {False: 2, True: 1}
"""Float32 copies of what is being summed over workers: gloo makes one of its own."""
