"""A model at an address that cannot be had: bad input, a store that is away for a moment, or no room for the copy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from prm_ray.errors import StorageError, UserError
from prm_ray.models import load_model, load_tokenizer, read_prm_json, resolve_model
from prm_ray.rewardmodels import load_with_value_head
from prm_ray.stages import pipeline
from tests.disks import memory_disk
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
