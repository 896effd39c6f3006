"""In which number format training loads what it freezes, and what the driver makes of what the workers leave."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from prm_ray.adapters import AdapterSettings
from prm_ray.errors import EngineError, NonFiniteLossError
from prm_ray.stages import fit
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config
from tests.unit.test_attempts import attempt_at


class Loaded(Exception):
    """With what a model would have been loaded."""


def load(name: str, dtype: str, trust_remote_code: bool, device: str | None) -> Any:
    raise Loaded(dtype, device)


@pytest.mark.parametrize(("computes_on", "dtype"), [("cuda", "bfloat16"), ("cpu", "float32")])
def test_the_base_of_an_adapter_is_loaded_as_it_is_computed_with_on_hosts_without_bfloat16_too(
    computes_on: str, dtype: str, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut weights are loaded in main memory: in float32 a model of 70 billion parameters has no room there."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(fit, "own_device", lambda: computes_on)
    config = tiny_config(tmp_path, tiny_model, model={"dtype": "auto"}, train={"parallel": "fsdp", "lora_rank": 4})
    folder, adapter = StageFolder(config.run.dir, "train"), AdapterSettings(4, 8.0)
    plan = fit.FitPlan("train", folder, tiny_model, config, config.train, 0, lambda: None, adapter=adapter, load=load)
    with pytest.raises(Loaded) as loaded:
        fit._new_trainer(plan, 1)
    assert loaded.value.args == (dtype, "cpu")


def remember_misses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at it as a machine does over NFS: what was once not there stays away, until the folder is opened."""
    missed: set[str] = set()
    stat, unlink, open_handle = os.stat, os.unlink, os.open

    def looking(path: Any, **options: Any) -> os.stat_result:
        if str(path) in missed:
            raise FileNotFoundError(errno.ENOENT, "missed", path)
        return stat(path, **options)

    def unlinking(path: Any, **options: Any) -> None:
        missed.add(str(path))
        unlink(path, **options)

    def opening(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path) == str(folder):
            missed.clear()
        return open_handle(path, *arguments, **options)

    for name, function in (("stat", looking), ("unlink", unlinking), ("open", opening)):
        monkeypatch.setattr(os, name, function)


@pytest.mark.parametrize(
    ("leaves", "error", "message"),
    [
        ("failure.txt", NonFiniteLossError, "^the loss is not finite$"),
        ("config.json", None, ""),
        ("metrics.jsonl", EngineError, "train: its workers ended without a model: do all machines see"),
    ],
)
def test_what_workers_on_other_machines_leave_is_seen_at_once(
    leaves: str, error: type[Exception] | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = attempt_at(tmp_path, "train")

    class Workers:
        def __init__(self, *_: Any, **settings: Any) -> None:
            """They are elsewhere."""

        def fit(self) -> None:
            (folder.shared_workspace / leaves).write_text("the loss is not finite")

    monkeypatch.setattr(fit, "TorchTrainer", Workers)
    monkeypatch.setattr(fit, "check_room", lambda *_: None)
    remember_misses(folder.shared_workspace, monkeypatch)
    config = tiny_config(tmp_path, "unused")
    plan = fit.FitPlan("train", folder, "unused", config, config.train, 0, lambda: None)
    with pytest.raises(error, match=message) if error else nullcontext():
        fit.fit(plan, 1)
