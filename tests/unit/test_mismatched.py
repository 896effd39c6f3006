"""KTO's estimate of the KL takes responses of other problems, and none of a problem that is held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.models import load_tokenizer
from prm_ray.planning.hardware import cluster_of_gpus
from prm_ray.planning.plan import plan_run
from prm_ray.stages import import_
from prm_ray.stages.reference import ReferenceWorker
from prm_ray.stages.trainingsets import held_out_responses, selected_responses, store_rows, training_data
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config
from tests.unit.test_trainingrows import rows_of, write_run

KTO = {"train": {"objective": "kto", "validation_fraction": 0.0}, "reference": {"mismatched": 1}}


def kto_config(folder: Path, model: str, **sections: dict[str, Any]) -> RunConfig:
    return tiny_config(folder, model, **{name: KTO.get(name, {}) | sections.get(name, {}) for name in KTO | sections})


def behind(problem: str, owner: str | None, token: int, model: str, split: str = "train") -> list[dict[str, Any]]:
    """One row of a problem, and behind its prompt a response of one token to another problem."""
    mismatched = {"mismatched_tokens": [token], "mismatched_logprob": -2.0, "mismatched_prompt_id": owner}
    return [row | mismatched for row in rows_of(problem, [True], model, split)]


def kept(config: RunConfig) -> set[int]:
    """The mismatched responses that are trained with."""
    folder = StageFolder(config.run.dir, "reference")
    data = training_data(config, store_rows(selected_responses(config).table, config, folder))
    return {token for item in range(len(data.sizes)) for (token,), _ in data.mismatched(item)}


def test_a_part_with_both_splits_puts_no_tested_response_behind_a_training_prompt(
    tmp_path: Path, tiny_model: str
) -> None:
    splits = {"1?": "train", "2?": "test", "3?": "train", "4?": "test", "5?": "train"}
    rows = [
        {"problem": problem, "text": f"{problem[0]}{sample}", "correct": sample == 0, "split": split}
        for problem, split in splits.items()
        for sample in range(2)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = kto_config(tmp_path / "run", tiny_model, **{"import": {"source": str(source)}})
    labels, reference = (StageFolder(config.run.dir, stage) for stage in ("import", "reference"))
    for folder in (labels, reference):
        folder.begin({})
    import_.run(config, labels)
    ReferenceWorker(config, labels, reference, "fingerprint")(0)
    tokenizer, found = load_tokenizer(tiny_model), list(reference.rows())
    problem_of = {row["prompt_id"]: row["problem"] for row in found}
    texts = {
        row["problem"]: (
            tokenizer.decode(row["mismatched_tokens"], skip_special_tokens=True),
            problem_of[row["mismatched_prompt_id"]],
        )
        for row in found
        if row["mismatched_tokens"]
    }
    assert texts == {"1?": ("30", "3?"), "3?": ("50", "5?"), "5?": ("10", "1?")}
    assert all((row["mismatched_tokens"] is None) == (row["mismatched_logprob"] is None) for row in found)


def test_no_tested_problem_enters_training_by_another_run_or_an_earlier_versions_table(
    tmp_path: Path, tiny_model: str
) -> None:
    parts = [behind("a", "b", 11, tiny_model), behind("b", "tested", 12, tiny_model), behind("c", None, 13, tiny_model)]
    own = write_run(tmp_path / "own", tiny_model, [*parts, rows_of("tested", [True], tiny_model, "test")])
    parts = [behind("d", "tested", 14, tiny_model), behind("e", "d", 15, tiny_model)]
    other = write_run(tmp_path / "other", tiny_model, parts)
    config = kto_config(own, tiny_model, select={"mix": [str(other)]})
    assert selected_responses(config).table.num_rows == 5
    assert kept(config) == {11, 15}


@pytest.mark.parametrize("seed", [0, 1])
def test_nor_does_a_problem_that_training_holds_out_to_measure(tmp_path: Path, tiny_model: str, seed: int) -> None:
    names = "abcdefgh"
    parts = [behind(name, names[number - 1], number, tiny_model) for number, name in enumerate(names)]
    run = write_run(tmp_path / "run", tiny_model, parts)
    config = kto_config(run, tiny_model, train={"validation_fraction": 0.25, "seed": seed})
    held_out = {row["prompt_id"] for row in held_out_responses(config)}
    trained = {number for number, name in enumerate(names) if name not in held_out}
    assert len(held_out) == 2
    assert kept(config) == {number for number in trained if names[number - 1] not in held_out}


def test_a_plan_counts_them_behind_training_prompts_alone(tmp_path: Path, tiny_model: str) -> None:
    """Each of 12 training prompts once more, with one response; nothing more for the 4 that are tested."""

    def tokens(mismatched: int) -> float:
        config = kto_config(tmp_path, tiny_model, reference={"mismatched": mismatched}, train={"objective": "ce"})
        plan = plan_run(config, cluster_of_gpus("L4", 1), prompt_tokens=10, response_tokens=5)
        return next(stage.tokens for stage in plan.stages if stage.stage == "reference") or 0.0

    assert tokens(1) - tokens(0) == 12 * (10 + 5)
