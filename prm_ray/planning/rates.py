"""Seconds: operations over what a device reaches of its data sheet, bytes over links and memory.

The shares of the data sheet are assumptions: no GPU has been measured with this code. On a CPU they are what
docs/results.md has. Attention counts here, unlike in `core.compute`: with long texts it is a visible part.
"""

from __future__ import annotations

from dataclasses import dataclass

from prm_ray.core.compute import ADAPTER_BACKWARD, BACKWARD, FORWARD
from prm_ray.planning.activations import FLOAT
from prm_ray.planning.hardware import Cluster, Device
from prm_ray.planning.memory import Training
from prm_ray.planning.shapes import Shape

_FORWARD_SHARE = {True: 0.4, False: 0.6}
_TRAINING_SHARE = {True: 0.35, False: 0.5}
_DECODING_SHARE = {True: 0.5, False: 0.18}
"""Of a GPU's (True) or CPU's operations a second, in passes that only score, in training, and in generation."""
_BANDWIDTH_SHARE, _LINK_SHARE = 0.7, 0.7
_NETWORK = 50e9
"""Bytes a second into a node (400 Gbit/s)."""
_TICK = 5e-3
"""Seconds of a decoding step beside its work: scheduling, launches."""
_TOKEN_OF_TENSOR_PARALLEL = 15e-6
"""Seconds of one sum over the GPUs of an engine; a layer has two."""
_BUSY = 0.8
"""Of an engine's places are taken, on average: the longest responses of a shard end alone."""
_OPTIMIZER_BYTES = 10 * FLOAT
"""Read and written a trained parameter in a step of AdamW, with clipping and the copy back into the model."""


def forward_flops(shape: Shape, visible: float) -> float:
    """Operations of a token forward, with so many earlier tokens to look at."""
    return FORWARD * shape.multiplied + 4 * shape.layers * shape.query * visible


def training_flops(shape: Shape, how: Training, visible: float) -> float:
    """Operations of a token forward and backward; with checkpointing forward twice."""
    forward = forward_flops(shape, visible)
    backward = ADAPTER_BACKWARD if how.lora_rank else BACKWARD
    return forward * (1 + backward / FORWARD + (1 if how.gradient_checkpointing else 0))


def forward_seconds(flops: float, device: Device) -> float:
    return flops / (device.flops * _FORWARD_SHARE[device.is_gpu])


@dataclass(frozen=True)
class Stepping:
    """One optimizer step of one worker: tokens of its passes, how many passes, and its devices, or its part of one."""

    tokens: float
    passes: int
    devices: float = 1.0

    @property
    def share(self) -> float:
        """Of a device that computes: with several, a worker's process still uses one."""
        return min(1.0, self.devices)


def step_seconds(
    shape: Shape, how: Training, step: Stepping, visible: float, number: int, cluster: Cluster
) -> tuple[float, float]:
    """Seconds of an optimizer step, and of these how long workers wait for each other's weights or gradients.

    With `fsdp` layers are gathered beside computing; whole gradients are summed behind it.
    """
    device = cluster.device
    computing = step.tokens * training_flops(shape, how, visible)
    computing /= device.flops * step.share * _TRAINING_SHARE[device.is_gpu]
    trained, workers = how.trained(shape), how.num_workers
    talking = _link(cluster, workers, step.devices)
    moving = _OPTIMIZER_BYTES * trained / how.shards / (device.bandwidth * step.share)
    if workers == 1:
        waiting = 0.0
    elif how.parallel == "ddp":
        waiting = 2 * FLOAT * trained / talking
    else:
        a_pass = 2 * number * shape.parameters + FLOAT * trained  # gathered forward and backward; gradients summed
        waiting = max(0.0, step.passes * a_pass / talking - computing)
    return computing + moving + waiting, waiting


def _link(cluster: Cluster, workers: int, gpus: float) -> float:
    """Bytes a second that each of so many workers, with so many GPUs each, gets of what all have.

    A ring over all of them is as fast as its slowest link: the network, as soon as one node has no room for all.
    """
    if not cluster.device.is_gpu or workers <= cluster.places_on_a_node(gpus):
        return cluster.device.link * _LINK_SHARE
    return min(cluster.device.link, _NETWORK) * _LINK_SHARE


def decoding_rate(shape: Shape, number: int, places: int, visible: float, device: Device, gpus: int) -> float:
    """Tokens a second of one engine with so many responses at once, on so many GPUs (0 = a CPU, `device` being its
    part of it)."""
    parts = max(1, gpus)
    computing = places * forward_flops(shape, visible) / parts / (device.flops * _DECODING_SHARE[device.is_gpu])
    if not device.is_gpu:
        return places * _BUSY / computing
    reading = number * shape.multiplied + places * visible * kv_bytes(shape, number)
    reading /= parts * device.bandwidth * _BANDWIDTH_SHARE
    talking = 2 * shape.layers * _TOKEN_OF_TENSOR_PARALLEL if gpus > 1 else 0.0
    return places * _BUSY / (max(computing, reading) + talking + _TICK)


def kv_bytes(shape: Shape, number: int) -> int:
    """Bytes of a token's keys and values, over all layers."""
    return 2 * number * shape.layers * shape.key
