"""Runs that end with a tiny trained model and have held-out problems to search."""

from pathlib import Path
from typing import Any

from prm_ray.config import RunConfig
from prm_ray.models import write_prm_json
from prm_ray.tables import StageFolder
from tests.tables_by_hand import mark_done, tiny_config, write_reference_texts
from tests.tiny import save_tiny_model


def run_to_search(run_dir: Path, model: str, num_problems: int, **search: Any) -> RunConfig:
    settings = {"sizes": [8], "expand": 4, "responses_per_generator": 16} | search
    config = tiny_config(run_dir, model, generate={"max_tokens": 24}, search=settings)
    problems = [{"problem": f"{n}+{n}", "text": "1\n2", "split": "test"} for n in range(num_problems)]
    stages = config.before("search")
    mark_done(config, stages[: stages.index("reference")])
    folder = write_reference_texts(config, [problems[: num_problems // 2], problems[num_problems // 2 :]])
    folder.begin(config.identity("reference") | {"label.finished_at": "noon"})
    folder.finish({"stage": "reference", "finished_at": "noon", "seconds": 1.0})
    mark_done(config, ["train"], after="reference")
    checkpoint = StageFolder(run_dir, "train").path
    save_tiny_model(checkpoint, seed=5)
    facts = {"objective": "ce", "beta": 0.5, "reference": model, "step_rule": "newline", "with_reference": True}
    write_prm_json(checkpoint, facts)
    return config
