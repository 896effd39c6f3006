"""The training run under Ray Train that `warmup` and `train` share: shard, step, measure, checkpoint, resume.

Ray Train starts the workers and restarts them; `Trainer` does the step; `metrics.jsonl` is the record. A run that was
killed goes on from its last checkpoint with the same sequence of steps and gives the same losses. All of it is written
in the workspace of this attempt, which looks at each step whether a newer one has taken over.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from prm_ray.adapters import AdapterSettings, add_adapter
from prm_ray.config import RunConfig
from prm_ray.core.device import number_format, own_device
from prm_ray.core.forward import Reading, response_logprobs
from prm_ray.core.packing import pack
from prm_ray.errors import EngineError, NonFiniteLossError, TakenOverError
from prm_ray.folders import filling, open_folder, remove_leftover, write_file
from prm_ray.metricslog import METRICS_FILE, MetricsLog, follow_metrics, steps_recorded
from prm_ray.models import load_model, load_tokenizer
from prm_ray.objectstore import is_remote
from prm_ray.runlog import Progress
from prm_ray.settings import FitSection
from prm_ray.stages.checkpoints import Checkpoints, storage_settings, stored_checkpoint
from prm_ray.stages.cluster import Wanted, check_room
from prm_ray.stages.gloo import GlooConfig
from prm_ray.stages.gpus import NO_GPUS
from prm_ray.stages.restarts import SaysRestarts
from prm_ray.stages.takeover import RUN_NAME, STORAGE, taken_over
from prm_ray.stages.threads import set_threads_beside
from prm_ray.storage import bytes_writer
from prm_ray.tables import StageFolder
from prm_ray.trainer import Schedule, Trainer
from prm_ray.trainingdata import TrainingData, plan_steps, share
from prm_ray.weights import total, world

_FAILURE = "failure.txt"
_OF_A_MODEL = ("config.json", "adapter_config.json")
_STORE_SECONDS = 5.0
"""A look at an object store takes some requests, which a step of a small model would wait for."""


@dataclass(frozen=True)
class FitPlan:
    """Everything a worker needs to know; picklable."""

    name: str
    folder: StageFolder
    model: str
    """Name of the model that training starts from."""
    config: RunConfig
    section: FitSection
    seed: int
    """Of the order of the batches and of weights that start at random."""
    make_data: Callable[[], TrainingData]
    make_held_out: Callable[[], Callable[[Trainer], dict[str, Any]]] | None = None
    adapter: AdapterSettings | None = None
    """Train a new adapter over the model in place of the model itself."""
    reading: Reading = response_logprobs
    """What losses are given of a batch."""
    load: Callable[..., Any] = load_model
    """Loads `model`: name, dtype, trust_remote_code, device."""
    head_lr: float | None = None
    working_dir: str = field(default_factory=os.getcwd)
    resume_from: Checkpoint | None = None
    """State of an earlier attempt to go on from."""

    def steps(self, data: TrainingData) -> list[list[int]]:
        """The items of every optimizer step."""
        return plan_steps(data.sizes, self.section.batch_size, self.section.epochs, self.seed)


def fit(plan: FitPlan, num_steps: int) -> None:
    """Run the plan to its end; leaves the model folder and metrics.jsonl in the workspace of `plan.folder`.

    Raises `NonFiniteLossError` if the loss stops being finite, `TakenOverError` if another attempt has taken over,
    `EngineError` if the workers alone took it for taken over: on their machines the folder is not there.
    """
    taken = taken_over(plan.folder)
    plan = replace(plan, resume_from=None if taken is None else stored_checkpoint(taken))
    section, workspace = plan.section, plan.folder.shared_workspace
    fewest = section.min_workers
    check_room(Wanted(plan.name, 1, section.gpus_per_worker, fewest or section.num_workers))
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl") if section.gpus_per_worker else GlooConfig(),
        scaling_config=ScalingConfig(
            num_workers=section.num_workers if fewest is None else (fewest, section.num_workers),
            use_gpu=section.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, **({"GPU": section.gpus_per_worker} if section.gpus_per_worker else {})},
        ),
        run_config=RayRunConfig(
            name=RUN_NAME,
            **storage_settings(workspace / STORAGE),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=3),
            callbacks=[SaysRestarts(plan.name)],
            worker_runtime_env={} if section.gpus_per_worker else {"env_vars": NO_GPUS},
            logging_config=LoggingConfig(log_level="WARNING"),  # of each checkpoint two lines otherwise
        ),
    )
    finished = threading.Event()
    progress = Progress(plan.name, num_steps, "step", done=steps_recorded(workspace / METRICS_FILE))
    watcher = threading.Thread(target=_show, args=(progress, workspace / METRICS_FILE, finished), daemon=True)
    watcher.start()
    (workspace / _FAILURE).unlink(missing_ok=True)
    try:
        with _interruptible():
            trainer.fit()
    except Exception:
        plan.folder.check()  # whoever takes over removes what Ray was about to write
        raise
    finally:
        finished.set()
        watcher.join()
    _check_left(plan)
    if plan.folder.attempt is None:
        remove_leftover(workspace / STORAGE)


def _check_left(plan: FitPlan) -> None:
    """Raises as `fit` does unless the workers have left a model.

    The folder is opened to look: over NFS a machine goes on missing for a minute what was not there when it looked, as
    the reason of a failure was not when `fit` began, and an opened folder is looked at anew.
    """
    workspace = plan.folder.shared_workspace
    failure, has_model = None, False
    with contextlib.suppress(FileNotFoundError), open_folder(workspace) as left:
        failure, has_model = left.read(_FAILURE), any(left.has(name) for name in _OF_A_MODEL)
    plan.folder.check()  # behind the look: whoever takes over removes the workspace
    if failure is not None:
        raise NonFiniteLossError(failure.decode())
    if not has_model:
        raise EngineError(f"{plan.name}: its workers ended without a model: do all machines see {str(workspace)!r}?")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`, as everywhere: Ray Train takes it for itself, for good, and ends the process
    as if all had gone well."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _worker_loop(config: dict[str, Any]) -> None:
    """Ray Train runs this on every worker. It must not see what happens on all workers at the same step, a loss that
    is not finite or an attempt that has taken over: it would try again in vain."""
    plan: FitPlan = config["plan"]
    try:
        _train(plan)
    except TakenOverError:
        return  # the driver sees it too
    except NonFiniteLossError as error:
        write_file(plan.folder.shared_workspace / _FAILURE, bytes_writer(str(error).encode()))


def _train(plan: FitPlan) -> None:
    with contextlib.suppress(FileNotFoundError):  # relative paths (a model, a chat template) are the driver's
        os.chdir(plan.working_dir)
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    set_threads_beside(context.get_local_world_size(), num_workers)
    fence = _Fence(plan.folder)
    fence.check()  # of an attempt that was taken over the files are gone, and its workers start again for that
    section, data, workspace = plan.section, plan.make_data(), plan.folder.shared_workspace
    steps = plan.steps(data)
    trainer = _new_trainer(plan, len(steps))
    checkpoints = Checkpoints(plan.folder)
    checkpoints.resume(trainer, plan.resume_from)
    preview = partial(trainer.preview, token_budget=section.token_budget)
    measure = plan.make_held_out() if plan.make_held_out else None
    fence.check(at_once=True)
    metrics = MetricsLog(workspace / METRICS_FILE, trainer.num_steps) if rank == 0 else None
    while trainer.num_steps < len(steps):
        fence.check()
        items = steps[trainer.num_steps]
        mine = share(items, rank, num_workers)
        batches = pack(data.groups(mine), section.token_budget)
        result = trainer.step(batches, data.loss(mine, batches, preview), data.count(items))
        is_last = trainer.num_steps == len(steps)
        if is_last:
            trainer.use_average()
        is_checkpoint = is_last or trainer.num_steps % section.checkpoint_every == 0
        held_out = measure(trainer) if measure and is_checkpoint else {}
        if metrics is not None:
            counts = {"num_responses": sum(data.sizes[i] for i in items), "num_workers": num_workers}
            metrics.write(trainer.num_steps, **vars(result), **counts, **held_out)
            if is_checkpoint:
                metrics.flush()
        if is_checkpoint and not is_last:
            checkpoints.save(trainer, result.loss)
    checkpoints.close()
    trainer.use_average()  # of a run that was killed behind its last step
    fence.check(at_once=True)
    with filling(workspace) as folder:
        trainer.save_model(folder)
        if rank == 0:
            _save_tokenizer(plan, folder)


class _Fence:
    """Raises `TakenOverError` on all workers or on none: one that ended alone would leave the others waiting."""

    def __init__(self, folder: StageFolder):
        self._folder, self._looked_at = folder, -math.inf
        self._pause = _STORE_SECONDS if is_remote(folder.path) else 0.0

    def check(self, at_once: bool = False) -> None:
        """The first worker looks, unless it did a moment ago; all must call this equally often."""
        over: TakenOverError | None = None
        if world()[0] == 0 and (at_once or time.monotonic() - self._looked_at >= self._pause):
            self._looked_at = time.monotonic()
            try:
                self._folder.check()
            except TakenOverError as error:
                over = error
        if total(torch.tensor(float(over is not None))).item():
            raise over or TakenOverError("another attempt has taken over")


def _new_trainer(plan: FitPlan, num_steps: int) -> Trainer:
    section, config = plan.section, plan.config
    is_sharded = section.parallel == "fsdp"
    compute_dtype = number_format(config.model.dtype, own_device())
    model = plan.load(
        plan.model,
        # what an adapter freezes needs no masters; the format is of where it computes, not of where it is loaded
        "float32" if plan.adapter is None else str(compute_dtype).removeprefix("torch."),
        config.model.trust_remote_code,
        device="cpu" if is_sharded else None,  # from there each layer goes to the GPU and is cut at once
    )
    if plan.adapter is not None:
        model = add_adapter(model, plan.adapter, plan.seed)
    return Trainer(
        model,
        Schedule(section.lr, num_steps, section.warmup_ratio, section.cycles),
        compute_dtype=compute_dtype,
        weight_decay=section.weight_decay,
        grad_clip=section.grad_clip,
        freeze_embeddings=section.freeze_embeddings,
        norm_lr=section.norm_lr,
        head_lr=plan.head_lr,
        parallel=section.parallel,
        gradient_checkpointing=section.gradient_checkpointing,
        reading=plan.reading,
    )


def _save_tokenizer(plan: FitPlan, folder: Path) -> None:
    config = plan.config
    tokenizer = load_tokenizer(plan.model, config.prompt.chat_template, config.model.trust_remote_code)
    tokenizer.save_pretrained(folder)


def _show(progress: Progress, metrics: Path, finished: threading.Event) -> None:
    """Follow metrics.jsonl from the driver: the workers' own output may be on another machine."""
    with progress:
        for line in follow_metrics(metrics, finished):
            progress.move_to(line["step"], loss=f"{line['loss']:.3f}")
