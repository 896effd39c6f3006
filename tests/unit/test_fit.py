"""In which number format training loads what it freezes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prm_ray.adapters import AdapterSettings
from prm_ray.stages import fit
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config


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
