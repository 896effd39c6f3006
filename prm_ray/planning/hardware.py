"""Machines: what their GPUs hold and how fast they are, from data sheets or from a custom spelling.

`8xH100`, `4xA100-80GB`, `8x96GB@400TFLOPs`, `8x96GB@400TFLOPs@2TB/s`. A vendor's GB of GPU memory is 2^30 bytes, of
which drivers leave 92 to 99 %.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from prm_ray.errors import UserError

GIB = 2**30
_LEFT_BY_DRIVER = 0.98
"""Of a custom GPU's memory; of the known ones what torch reports is in the table."""
_LEFT_BY_SYSTEM = 0.9
"""Of a machine's main memory: the rest is for the system, Ray and its object store."""
_CUSTOM_BANDWIDTH = 2.0
_PCIE = 20.0


@dataclass(frozen=True)
class Device:
    """What a worker computes on: a GPU, or all CPU cores of a node."""

    name: str
    memory: float
    """Bytes that a program can have."""
    flops: float
    """Dense bfloat16 operations a second, by the data sheet."""
    bandwidth: float
    """Bytes of memory read a second."""
    link: float = _PCIE * 1e9
    """Bytes a second to another GPU of the node, in one direction."""
    is_gpu: bool = True


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines with `per_node` devices each (1 where the device is the node's CPU)."""

    device: Device
    per_node: int
    nodes: int = 1

    @property
    def num_gpus(self) -> int:
        return self.per_node * self.nodes if self.device.is_gpu else 0

    def places(self, gpus: float) -> int:
        """How many engines or workers with so many GPUs each there is room for."""
        return self.nodes * self.places_on_a_node(gpus)

    def places_on_a_node(self, gpus: float) -> int:
        """What is left over on a node, or on a GPU that is shared, makes no more with what is left on another."""
        return int(self.per_node // gpus) if gpus >= 1 else self.per_node * int(1 / gpus)

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        memory = f"{self.device.memory / GIB:.1f} GiB"
        if not self.device.is_gpu:
            return f"{nodes} of {self.device.name} ({memory})"
        return f"{nodes} of {self.per_node} x {self.device.name} ({memory} each)"


def _gpu(name: str, gib: float, tflops: float, tb_per_s: float, link: float = _PCIE) -> Device:
    return Device(name, gib * GIB, tflops * 1e12, tb_per_s * 1e12, link * 1e9)


GPUS = {
    device.name: device
    for device in (
        _gpu("A100-40GB", 39.4, 312, 1.56, 300),
        _gpu("A100-80GB", 79.1, 312, 2.04, 300),
        _gpu("H100", 79.1, 989, 3.35, 450),
        _gpu("H100-PCIe", 79.1, 756, 2.04),
        _gpu("H200", 139.7, 989, 4.8, 450),
        _gpu("GH200", 94.5, 989, 4.0),
        _gpu("B200", 178.3, 2250, 8.0, 900),
        _gpu("L4", 22.0, 121, 0.3),
        _gpu("L40S", 44.4, 362, 0.86),
        _gpu("A10G", 22.0, 70, 0.6),
        _gpu("A40", 44.4, 150, 0.7),
        _gpu("A6000", 47.4, 155, 0.77),
        _gpu("RTX-6000-Ada", 47.4, 364, 0.96),
        _gpu("RTX-4090", 23.5, 165, 1.01),
        _gpu("RTX-3090", 23.5, 71, 0.94),
    )
}
"""Memory as torch reports it (GiB), dense bfloat16 rate, memory bandwidth, and NVLink in one direction where there is
one (GB/s; else PCIe, as a guess)."""
_OTHER_NAMES = {
    "a100": "A100-80GB",
    "h100-80gb": "H100",
    "h100-sxm": "H100",
    "h200-141gb": "H200",
    "rtx-a6000": "A6000",
}

_NUMBER = r"\d+\.?\d*|\.\d+"
_CUSTOM = re.compile(
    rf"(?P<memory>{_NUMBER})(?P<unit>GB|GiB)(?:@(?P<tflops>{_NUMBER})TFLOPs?)(?:@(?P<bandwidth>{_NUMBER})TB/s)?",
    re.IGNORECASE,
)
SPELLINGS = "8xH100, 4xA100-80GB or, for one that is not known, 8x96GB@400TFLOPs or 8x96GB@400TFLOPs@2TB/s"


def cluster_of_gpus(text: str, nodes: int) -> Cluster:
    """`text` are the GPUs of each node. Raises `UserError` for a name that is not known, listing those that are."""
    _check_nodes(nodes)
    count, x, name = text.partition("x")
    if not x or not count.isdigit():
        count, name = "1", text
    if int(count) < 1:
        raise UserError(f"--gpus {text!r}: a node must have at least 1 GPU; use --cpu for machines without")
    return Cluster(_device(name, text), int(count), nodes)


def _device(name: str, text: str) -> Device:
    lower = name.lower().replace("_", "-").replace(" ", "-")
    known = {each.lower(): device for each, device in GPUS.items()}
    if (device := known.get(_OTHER_NAMES.get(lower, lower).lower())) is not None:
        return device
    if match := _CUSTOM.fullmatch(name):
        memory, tflops = float(match["memory"]), float(match["tflops"])
        bandwidth = float(match["bandwidth"] or _CUSTOM_BANDWIDTH)
        _check_numbers(text, {"memory": memory, "rate": tflops, "memory bandwidth": bandwidth})
        return _gpu(name, memory * _LEFT_BY_DRIVER, tflops, bandwidth)
    raise UserError(f"--gpus {text!r}: no GPU {name!r} is known; write {SPELLINGS}. Known: {', '.join(GPUS)}")


def _check_numbers(text: str, numbers: dict[str, float]) -> None:
    wrong = [what for what, number in numbers.items() if not number > 0]
    if wrong:
        raise UserError(f"--gpus {text!r}: the {' and the '.join(wrong)} of a GPU must be more than 0")


def cluster_of_cpus(nodes: int) -> Cluster:
    """Machines without a GPU that are like this one."""
    _check_nodes(nodes)
    cores = len(os.sched_getaffinity(0))
    memory = _LEFT_BY_SYSTEM * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flops = cores * _core_flops(_cpu_flags())
    name = f"{cores} CPU core{'s' if cores > 1 else ''}"
    return Cluster(Device(name, memory, flops, cores * 10e9, link=1e9, is_gpu=False), 1, nodes)


def _core_flops(flags: set[str]) -> float:
    """bfloat16 operations a second of one core: what torch reaches in matrix products, roughly, by what the CPU has."""
    if "amx_bf16" in flags:
        return 1000e9
    if "avx512_bf16" in flags:
        return 175e9
    return 60e9


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def _check_nodes(nodes: int) -> None:
    if nodes < 1:
        raise UserError(f"--nodes {nodes}: must be at least 1")
