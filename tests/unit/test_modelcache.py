"""A model at an address that cannot be had: bad input, a store that is away for a moment, or no room for the copy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from prm_ray.config import RunConfig
from prm_ray.errors import StorageError, UserError
from prm_ray.models import load_model, load_tokenizer, read_prm_json, resolve_model, write_prm_json
from prm_ray.rewardmodels import load_with_value_head
from prm_ray.serve import server
from prm_ray.stages import pipeline, search
from prm_ray.tables import StageFolder
from tests.disks import memory_disk
from tests.tables_by_hand import mark_done, tiny_config
from tests.tiny import save_tiny_model
from tests.unit.test_damage import line_of
from tests.unit.test_pipeline import make_config

MODEL = "memory://bucket/model"


@pytest.fixture(autouse=True)
def stored(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with a model, and an empty cache."""
    monkeypatch.setenv("PRM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    MemoryFileSystem().put(tiny_model, "/bucket/model", recursive=True)


def fail(monkeypatch: pytest.MonkeyPatch, call: str, error: Exception) -> None:
    def failing(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(MemoryFileSystem, call, failing)


@pytest.mark.parametrize("call", ["ls", "get_file"])
@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_with_value_head, read_prm_json])
def test_a_store_that_is_away_while_a_worker_loads_is_no_bad_input(
    call: str, load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, call, PermissionError(13, "slow down"))
    line = line_of(lambda: load(MODEL), capsys, 1)
    assert "'memory://bucket/model" in line and "cannot be read: " in line and "slow down (credentials and" in line


def test_a_model_that_is_not_there_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(lambda: resolve_model("memory://bucket/nothing"), capsys, 2)
    assert "model 'memory://bucket/nothing' does not exist; it must be the address of a model folder" in line


def test_a_cache_without_room_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with memory_disk(tmp_path / "cache", "size=64k") as cache:
        line = line_of(lambda: resolve_model(MODEL), capsys, 1)
        assert f"'{cache}' cannot be written: No space left on device; make room there" in line
        assert not [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").touch()
    assert f"'{tmp_path}/cache' (PRM_RAY_CACHE) cannot be written: " in line_of(lambda: resolve_model(MODEL), capsys, 1)


def test_a_model_that_is_replaced_while_it_is_copied_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, "get_file", FileNotFoundError("/bucket/model/config.json"))
    assert "was changed while it was copied: /bucket/model/config.json" in line_of(
        lambda: resolve_model(MODEL), capsys, 1
    )


@pytest.mark.parametrize("setting", ["model.name", "reference.model", "train.start"])
def test_a_store_that_does_not_answer_is_bad_input_at_the_start_and_no_more_once_a_stage_has_begun(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, f"{setting}={MODEL}", "generate.backend=transformers")
    fail(monkeypatch, "ls", ConnectionError("no such host"))
    with pytest.raises(UserError, match=f"'{MODEL}' cannot be reached: no such host"):
        pipeline.check_inputs(config, ["generate"])
    monkeypatch.setitem(pipeline._attempts, config.run.dir, None)
    with pytest.raises(StorageError, match=f"'{MODEL}' cannot be reached: no such host"):
        pipeline.check_inputs(config, ["generate"])


def served(run_dir: Path, here: str, **sections: dict[str, Any]) -> RunConfig:
    """A trained run whose reference is at the address, unless the sections name a model there."""
    config = tiny_config(run_dir, here, **sections)
    mark_done(config, ["train"])
    reference = here if sections else MODEL
    facts = {"beta": 0.5, "step_rule": "newline", "with_reference": True, "reference": reference}
    write_prm_json(Path(save_tiny_model(StageFolder(run_dir, "train").path)), facts)
    return config


SERVED: list[dict[str, dict[str, Any]]] = [
    {},
    {"serve": {"models": {"more": MODEL}}},
    {"score": {"model": MODEL, "style": "value_head"}},
    {"serve": {"generator": "vllm"}, "model": {"name": MODEL}},
]


@pytest.mark.parametrize("call", ["ls", "get_file"])
@pytest.mark.parametrize("sections", SERVED)
def test_a_server_is_told_at_its_start_that_it_may_not_have_a_model_or_that_the_store_is_away(
    call: str, sections: dict[str, dict[str, Any]], tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = served(tmp_path / "run", tiny_model, **sections)
    fail(monkeypatch, call, PermissionError(13, "no such key"))
    with pytest.raises(UserError, match=rf"'{MODEL}.* cannot be read: .*no such key"):
        server._check(config)
    fail(monkeypatch, call, ConnectionError("no such host"))
    with pytest.raises(StorageError, match=rf"'{MODEL}.* cannot be read: no such host"):
        server._check(config)


@pytest.mark.parametrize("call", ["ls", "get_file"])
def test_so_is_a_search_of_a_reference_that_the_checkpoint_names(
    call: str, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = served(tmp_path / "run", tiny_model)
    monkeypatch.setattr(search, "held_out_problems", lambda *_: [])
    fail(monkeypatch, call, PermissionError(13, "no such key"))
    with pytest.raises(UserError, match=r"cannot be read: .*no such key"):
        pipeline.check_inputs(config, ["search"])
    with monkeypatch.context() as begun, pytest.raises(StorageError, match=r"cannot be read: .*no such key"):
        begun.setitem(pipeline._attempts, config.run.dir, None)
        pipeline.check_inputs(config, ["search"])
    fail(monkeypatch, call, ConnectionError("no such host"))
    with pytest.raises(StorageError, match="cannot be read: no such host"):
        pipeline.check_inputs(config, ["search"])
