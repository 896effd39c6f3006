"""Parts that workers on other machines have written, on a disk whose listings age."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from prm_ray.errors import EngineError
from prm_ray.stages import shards
from prm_ray.tables import StageFolder


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between looks at the folder, which are not waited for."""
    StageFolder(tmp_path, "label").path.mkdir()
    pauses: list[float] = []
    monkeypatch.setattr(shards, "time", SimpleNamespace(sleep=pauses.append, monotonic=lambda: sum(pauses)))
    return pauses


def test_a_part_that_a_listing_does_not_have_yet_is_waited_for(
    tmp_path: Path, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageFolder, "finished_parts", lambda _: [0, 1, 2] if len(looks) > 30 else [0, 2])
    shards.check_all_there(StageFolder(tmp_path, "label"), 3, "label")
    assert sum(looks) == 31


def test_a_part_that_is_gone_is_missed_after_a_while(
    tmp_path: Path, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageFolder, "finished_parts", lambda _: [0, 2])
    with pytest.raises(EngineError, match="label: 1 of 3 parts were removed while it worked; run the same again"):
        shards.check_all_there(StageFolder(tmp_path, "label"), 3, "label")
    assert 60 < sum(looks) < 90
