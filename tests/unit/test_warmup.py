"""What the workers of a warm-up are given: solutions encoded by the driver, whatever they come from."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from prm_ray.attempts import draw
from prm_ray.config import RunConfig
from prm_ray.models import build_messages, encode_prompt, encode_response, load_tokenizer
from prm_ray.stages import warmup
from prm_ray.stages.fit import FitPlan
from prm_ray.stages.result import StageResult
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config

ROWS = [{"problem": f"{number} + 0", "answer": str(number), "worked": f"{number}\nthat is all"} for number in range(5)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (path := tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def config(tmp_path: Path, tiny_model: str, source: Path) -> RunConfig:
    problems = {"train": str(source), "test": str(source), "num_train": None, "num_test": None}
    settings = {"enabled": True, "epochs": 2, "batch_size": 2}
    return tiny_config(tmp_path / "run", tiny_model, problems=problems | {"solution_field": "worked"}, warmup=settings)


def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[StageFolder, StageResult, FitPlan]:
    """The stage but for its training, and the plan that its workers get."""
    plans: list[bytes] = []

    def fit(plan: FitPlan, num_steps: int) -> None:
        assert num_steps == 6, "two epochs of five solutions, two a step"
        plans.append(pickle.dumps(plan))

    monkeypatch.setattr(warmup, "fit", fit)
    folder = StageFolder(config.run.dir, "warmup")
    folder.begin({}, attempt=draw(config.run.dir))
    result = warmup.run(config, folder)
    return folder, result, pickle.loads(plans[0])


def test_workers_need_not_see_where_the_problems_come_from(
    config: RunConfig, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a hub that the driver's machine alone reaches, or a file on its own disk."""
    _, result, plan = run(config, monkeypatch)
    source.unlink()
    data: Any = plan.make_data()
    groups = data.groups(range(len(ROWS)))
    tokenizer = load_tokenizer(config.model.name)
    expected = [
        (
            encode_prompt(tokenizer, build_messages(config.prompt, row["problem"])),
            [encode_response(tokenizer, row["worked"])],
        )
        for row in ROWS
    ]
    assert [(group.prompt, group.responses) for group in groups] == expected
    assert (result.rows_in, result.rows_out, result.tokens) == (5, 5, 2 * data.count(range(5)))


def test_nothing_of_the_solutions_stays_when_the_stage_is_finished(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = run(config, monkeypatch)
    assert list(folder.path.rglob(".solutions*"))
    folder.finish({})
    assert folder.is_done() and not list(folder.path.rglob(".solutions*"))
