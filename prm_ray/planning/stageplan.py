"""What is known of one stage before it runs, and what a plan of a run is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.planning.hardware import GIB, Cluster
from prm_ray.planning.memory import Terms, total
from prm_ray.planning.shapes import Shape
from prm_ray.planning.workload import Workload

_CPU_PROCESS = 1.6 * GIB
"""A worker's interpreter with torch and Ray in it, and what `core.allocator` keeps of freed memory."""
_CPU_MALLOC = 0.05
_CONTEXT = 1.5 * GIB
_FRAGMENTED = 0.1
HELD = ("weights", "float32 masters", "optimizer moments", "weight averaging", "KV cache")
"""Terms that are allocated once and stay."""


@dataclass(frozen=True)
class Question:
    """A run on machines. Fields are changed to see what would help."""

    config: RunConfig
    cluster: Cluster
    shapes: dict[str, Shape]
    """By what it is for: `model`, `reference`, `verifier`, `score`."""
    work: Workload

    @property
    def number(self) -> int:
        """Bytes of a number in the compute dtype. What `auto` is on a CPU is not known from here: it may be float32."""
        dtype = self.config.model.dtype
        return 2 if dtype == "bfloat16" or (dtype == "auto" and self.cluster.device.is_gpu) else 4

    @property
    def shape(self) -> Shape:
        return self.shapes["model"]


@dataclass(frozen=True)
class Resources:
    """Processes of a stage, and GPUs of each."""

    workers: int
    gpus: float
    settings: tuple[str, str]
    """The keys that say so."""


@dataclass(frozen=True)
class StagePlan:
    """Memory in bytes a worker, tokens a second over all workers, hours; none = not known, or not asked."""

    stage: str
    where: str
    terms: Terms = field(default_factory=dict)
    spare: float = 0.0
    """Allowance for what no term counts."""
    have: float | None = None
    tokens: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    flops: float | None = None
    gpus: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def need(self) -> float:
        return total(self.terms) + self.spare

    @property
    def fits(self) -> bool | None:
        """None: nothing to fit, or machines that nothing is known of."""
        return None if self.have is None or not self.terms else self.need <= self.have


class TooFewGPUsError(UserError):
    """`instead` is the setting with which the stage would have room, as an argument."""

    def __init__(self, message: str, instead: str):
        super().__init__(message)
        self.instead = instead


def check_room(stage: str, resources: Resources, cluster: Cluster) -> None:
    """Raises `UserError` for more engines or workers than there is room for, or one that fits on no machine."""
    workers_key, gpus_key = (f"{stage}.{key}" for key in resources.settings)
    asked = resources.workers * resources.gpus
    if asked and not cluster.device.is_gpu:
        raise UserError(f"{gpus_key} is {resources.gpus:g}, but --cpu has no GPU: say {gpus_key}=0, or --gpus")
    if not cluster.device.is_gpu:
        return
    if resources.gpus > cluster.per_node:
        has = f"{cluster.per_node} GPU{'s' if cluster.per_node > 1 else ''}"
        raise UserError(f"{gpus_key} {resources.gpus:g} must be on one node, and a node has {has}")
    if not asked or resources.workers <= (places := cluster.places(resources.gpus)):
        return
    what = f"{workers_key} {resources.workers} with {gpus_key} {resources.gpus:g}"
    if asked > cluster.num_gpus:
        reason = f"needs {asked:g} GPUs; there are {cluster.num_gpus}: {cluster}"
    else:
        one = "a node" if resources.gpus >= 1 else "a GPU"
        reason = f"must each be within {one}; there is room for {places}: {cluster}"
    raise TooFewGPUsError(f"{what} {reason}", f"{workers_key}={places}")


def room(resources: Resources, cluster: Cluster) -> float | None:
    """Bytes of a worker; none on the CPUs of machines of which only GPUs are known."""
    if cluster.device.is_gpu:
        return cluster.device.memory * min(1.0, resources.gpus) if resources.gpus else None
    return cluster.device.memory / -(-resources.workers // cluster.nodes)


def spare(terms: Terms, on_gpu: bool) -> float:
    """For what no term counts, a guess. GPU: the driver's context and libraries' buffers, and a tenth of what comes and
    goes, for holes between blocks. CPU: the process itself, freed memory it keeps, and holes between blocks."""
    moving = sum(size for name, size in terms.items() if name not in HELD)
    if on_gpu:
        return _CONTEXT + _FRAGMENTED * moving
    return _CPU_PROCESS + _CPU_MALLOC * total(terms)


def where(resources: Resources, cluster: Cluster, what: str = "worker") -> str:
    """`4 workers, a GPU each`."""
    workers = f"{resources.workers} {what}{'s' if resources.workers > 1 else ''}"
    if not cluster.device.is_gpu or not resources.gpus:
        return f"{workers} on CPUs"
    each = " each" if resources.workers > 1 else ""
    return f"{workers}, {resources.gpus:g} GPU{'s' if resources.gpus > 1 else ''}{each}"


def idle(stage: str, resources: Resources, cluster: Cluster) -> tuple[str, ...]:
    """A note where GPUs have nothing to do."""
    if not resources.gpus:
        gpus_key = f"{stage}.{resources.settings[1]}"
        return (f"runs on CPUs: {gpus_key} is 0; memory and time there are not planned",) if cluster.num_gpus else ()
    more = cluster.places(resources.gpus)
    if more <= resources.workers:
        return ()
    left = cluster.num_gpus - resources.workers * resources.gpus
    idle_ones = f"{left:g} GPU is" if left == 1 else f"{left:g} GPUs are"
    return (f"{idle_ones} idle: {stage}.{resources.settings[0]}={more}",)
