"""Runs that have all but one stage, which a test then does: of tiny models, with what is before it made by hand."""

from pathlib import Path

from prm_ray.config import RunConfig
from tests.tables_by_hand import finish_before, tiny_config, write_reference_texts

_TEXTS = ("1\n2\n3", "Right\nsome steps\n4", "1\n2", "Wrong\n5")


def run_to_label_steps(run_dir: Path, model: str, num_problems: int) -> RunConfig:
    """A shard of `step_label` is a problem: four responses, two of which begin alike."""
    config = tiny_config(
        run_dir,
        model,
        generate={"max_tokens": 24, "num_engines": 2},
        step_label={"method": "monte_carlo", "num_completions": 4, "problems_per_shard": 1},
    )
    shared = [{"problem": f"{number} + 1"} for number in range(num_problems)]
    rows = [each | {"text": text, "sample_index": i} for each in shared for i, text in enumerate(_TEXTS)]
    parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    finish_before(config, "step_label", lambda: write_reference_texts(config, parts))
    return config
