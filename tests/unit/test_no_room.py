"""A disk that fills up while tensors or a tokenizer are written: libraries in Rust, whose errors are no `OSError`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from prm_ray.adapters import AdapterSettings, add_adapter, save_weights
from prm_ray.embeddedmodel import embedded_folder
from prm_ray.folders import filling
from prm_ray.models import load_model, load_tokenizer
from prm_ray.storage import writing
from prm_ray.trainerstate import write_shard
from tests.disks import memory_disk
from tests.unit.test_damage import line_of


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, less than each of the files."""
    with memory_disk(tmp_path / "disk", "size=64k") as folder:
        yield folder


def store_state(model: str, folder: Path) -> None:
    write_shard(folder, {"master": torch.zeros(100_000)}, 0, 1)


def store_model(model: str, folder: Path) -> None:
    save_weights(load_model(model, "float32"), folder, None, torch.float32)


def store_adapter(model: str, folder: Path) -> None:
    adapter = AdapterSettings(rank=64, alpha=1.0)
    save_weights(add_adapter(load_model(model, "float32"), adapter, 0), folder, None, torch.float32)


def store_tokenizer(model: str, folder: Path) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([f"token{number}" for number in range(1000)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("store", [store_state, store_model, store_adapter, store_tokenizer])
def test_what_a_training_stores_on_a_full_disk_ends_in_one_line(
    store: Callable[[str, Path], None], small_disk: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with filling(small_disk) as folder:
            store(tiny_model, folder)

    line = line_of(work, capsys, 1)
    assert f"'{small_disk}' cannot be written: No space left on device; make room there, then run" in line


def test_another_error_of_a_library_keeps_its_own_type_and_text(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No such file or directory") as error, writing(tmp_path):
        write_shard(tmp_path / "nowhere", {"master": torch.zeros(1)}, 0, 1)
    assert type(error.value).__name__ == "SafetensorError"


def test_a_model_that_comes_with_a_package_has_no_room_in_the_cache(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRM_RAY_CACHE", str(small_disk))
    line = line_of(embedded_folder, capsys, 1)
    assert f"'{small_disk}' cannot be written: No space left on device" in line
    assert not list(small_disk.iterdir()), "half a model fills the disk further"
