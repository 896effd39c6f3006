"""Runs that end with a tiny trained model and have held-out problems to search, and what a whole search is."""

from collections import Counter
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


def run_to_kill(run_dir: Path, model: str, num_problems: int, problems_per_part: int) -> RunConfig:
    """Two strategies on two generators and two scorers."""
    return run_to_search(
        run_dir,
        model,
        num_problems,
        strategies=["best_of_n", "beam"],
        num_generators=2,
        num_scorers=2,
        responses_per_generator=8,
        problems_per_part=problems_per_part,
    )


def check_whole(folder: StageFolder, num_problems: int) -> None:
    """Of `run_to_kill`: every problem under both strategies, every candidate once, none failed, every parent there."""
    rows = list(folder.rows())
    keys = Counter((row["prompt_id"], row["strategy"], row["candidate"]) for row in rows)
    assert set(keys.values()) == {1}
    assert len({(prompt_id, strategy) for prompt_id, strategy, _ in keys}) == 2 * num_problems
    assert all(row["error"] is None and row["value"] is not None for row in rows)
    parents = {(row["prompt_id"], row["strategy"], row["parent"]) for row in rows if row["parent"] != -1}
    assert parents <= keys.keys()
    of_best_of_n = Counter(row["prompt_id"] for row in rows if row["strategy"] == "best_of_n")
    assert set(of_best_of_n.values()) == {8}
    assert folder.is_done() and folder.manifest()["rows_out"] == len(rows)
