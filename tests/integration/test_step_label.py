"""Monte Carlo step labels with Ray: real vLLM and the real small model, and what a lost part costs."""

from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.stages import step_label
from prm_ray.stages.result import StageResult
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config, write_reference_texts

pytestmark = pytest.mark.usefixtures("ray_local")

NUM_COMPLETIONS = 4
TEXTS = ["Right\nI think\n4", "Right\nI think\nfour", "Wrong\n4", "Let me think.\n4", "Let me think.\n4"]


def config_of(tmp_path: Path, model: str, backend: str) -> RunConfig:
    return tiny_config(
        tmp_path / "run",
        model,
        label={"judge": "tests.judges:by_first_word"},
        generate={"backend": backend, "max_tokens": 24},
        step_label={"method": "monte_carlo", "num_completions": NUM_COMPLETIONS, "problems_per_shard": 1},
    )


def write_responses(config: RunConfig) -> list[tuple[str, int]]:
    """Three problems in two parts, one held out; returns the keys of the training rows."""
    parts: list[list[dict[str, Any]]] = [[], []]
    for number in range(3):
        shared = {"problem": f"What is {number} + 2?", "split": "test" if number == 1 else "train"}
        for index, text in enumerate(TEXTS):
            row = {"text": text, "sample_index": index, "correct": text.endswith("4")}
            parts[number // 2].append(shared | row)
    write_reference_texts(config, parts)
    return [(row["problem"], row["sample_index"]) for rows in parts for row in rows if row["split"] == "train"]


def label(config: RunConfig) -> StageResult:
    folder = StageFolder(config.run.dir, "step_label")
    folder.begin(config.identity("step_label"))
    return step_label.run(config, folder)


def check_labels(config: RunConfig, keys: list[tuple[str, int]]) -> None:
    """Every training row once; the end is the outcome; what begins alike has like labels; judges see the beginning."""
    rows = list(StageFolder(config.run.dir, "step_label").rows())
    assert [(row["problem"], row["sample_index"]) for row in rows] == keys
    by_prefix: dict[tuple[str, tuple[int, ...]], set[float]] = {}
    for row in rows:
        assert row["step_label_error"] is None and len(row["step_labels"]) == len(row["step_ends"])
        assert row["step_labels"][-1] == float(row["correct"])
        for end, value in zip(row["step_ends"][:-1], row["step_labels"], strict=False):
            by_prefix.setdefault((row["problem"], tuple(row["response_tokens"][:end])), set()).add(value)
            assert value * NUM_COMPLETIONS in range(NUM_COMPLETIONS + 1)
            if row["text"].startswith(("Right", "Wrong")):
                assert value == float(row["text"].startswith("Right"))
    assert len(by_prefix) == 2 * 4 and all(len(values) == 1 for values in by_prefix.values())


def test_the_real_model_completes_every_prefix_once(tmp_path: Path, demo_model: Path):
    pytest.importorskip("vllm")
    config = config_of(tmp_path, str(demo_model), "vllm")
    keys = write_responses(config)
    result = label(config)
    assert (result.rows_in, result.rows_out, result.failed) == (10, 10, {})
    check_labels(config, keys)
    details = result.details
    assert (details["num_prefixes"], details["num_completions"]) == (8, 8 * NUM_COMPLETIONS)
    assert details["num_completions"] < details["completion_tokens"] == result.tokens < 24 * details["num_completions"]
    assert (details["num_labelled_responses"], details["num_labelled_steps"]) == (10, 2 * (2 * 3 + 3 * 2))


def test_a_lost_part_is_made_again_and_the_work_of_all_parts_is_counted(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "transformers")
    keys = write_responses(config)
    before = label(config)
    folder = StageFolder(config.run.dir, "step_label")
    kept = folder.part_path(1).stat().st_mtime_ns
    folder.part_path(0).unlink()
    again = label(config)
    assert folder.part_path(1).stat().st_mtime_ns == kept
    check_labels(config, keys)
    assert again == before, "sampled again with the same seeds"
