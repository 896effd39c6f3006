"""ProcessBench's rows: which are refused, what a worker makes of each kind, and every figure of a small report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.errors import UserError
from prm_ray.models import decode, encode_response, load_tokenizer, write_prm_json
from prm_ray.scorer import Scorer
from prm_ray.settings import ProcessBenchSection
from prm_ray.stages.processbench import ProcessBenchWorker, Solution, load_solutions
from prm_ray.stages.processbench_report import make_report, write_report
from prm_ray.tables import StageFolder

LABELLED = {"problem": "1+2+4?", "steps": ["1+2=3", "3+4=8"], "label": 1}
RIGHT = {**LABELLED, "label": -1}


def write_subset(folder: Path, *rows: dict[str, Any], subset: str = "gsm8k") -> ProcessBenchSection:
    lines = [json.dumps({"id": f"{subset}-{number}", **row}) + "\n" for number, row in enumerate(rows)]
    (folder / f"{subset}.jsonl").write_text("".join(lines))
    return ProcessBenchSection(source=str(folder), subsets=[subset], threshold_from=subset)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "1?", "steps": ["a"]}, r"row 2 of .* has no field 'label'"),
        ({**LABELLED, "label": 2}, "row 2 of .*: label 2 must be -1 or the number of one of its 2 steps"),
        ({**LABELLED, "label": True}, "label True must be -1 or"),
        ({**LABELLED, "steps": [], "label": 0}, "one of its 0 steps"),
        ({**LABELLED, "steps": "a"}, "steps must be a list of texts"),
        ({**LABELLED, "steps": [None]}, "steps must be a list of texts"),
        ({**LABELLED, "problem": " "}, "problem must be a text, not ' '"),
    ],
)
def test_a_row_that_is_not_processbench_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_solutions(write_subset(tmp_path, RIGHT, row), 0)


def test_a_source_that_is_not_there_or_gives_no_threshold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"processbench.source '/none' must be a folder"):
        load_solutions(ProcessBenchSection(source="/none"), 0)
    section = write_subset(tmp_path, RIGHT, LABELLED)
    with pytest.raises(UserError, match=r"math.jsonl' does not exist"):
        load_solutions(section.model_copy(update={"subsets": ["gsm8k", "math"]}), 0)
    with pytest.raises(UserError, match="'gsm8k' has only solutions with a wrong step; a threshold needs both"):
        load_solutions(section.model_copy(update={"num_rows": 1}), 3)


def test_settings_of_subsets_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(ValueError, match="threshold_from 'gsm8k' must be one of subsets: math"):
        ProcessBenchSection(subsets=["math"])
    with pytest.raises(ValueError, match="subsets must differ"):
        ProcessBenchSection(subsets=["gsm8k", "gsm8k"])


def test_solutions_to_one_problem_lie_side_by_side(tmp_path: Path) -> None:
    section = write_subset(tmp_path, RIGHT, {**LABELLED, "problem": "other"}, LABELLED)
    assert [solution.id for solution in load_solutions(section, 0)] == ["gsm8k-0", "gsm8k-2", "gsm8k-1"]


def test_a_quick_look_is_a_drawn_one_because_the_files_are_sorted_by_label(tmp_path: Path) -> None:
    section = write_subset(tmp_path, *[LABELLED] * 50, *[RIGHT] * 50).model_copy(update={"num_rows": 40})
    drawn = load_solutions(section, 0)
    assert len({solution.id for solution in drawn}) == 40 and 10 < sum(each.label == -1 for each in drawn) < 30
    assert load_solutions(section, 0) == drawn != load_solutions(section, 1)


@pytest.fixture(scope="module")
def config(tiny_model: str, other_tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose checkpoint is a tiny model, newlines between steps, with another as its reference."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_model, run / "checkpoint")
    facts = {"objective": "ce", "beta": 0.5, "reference": other_tiny_model, "step_rule": "newline"}
    write_prm_json(run / "checkpoint", facts | {"with_reference": True, "prompt": {"system": "Check."}})
    return RunConfig.model_validate({"run": {"dir": str(run)}, "model": {"dtype": "float32"}})


def scored(config: RunConfig, *solutions: Solution) -> list[dict[str, Any]]:
    folder = StageFolder(config.run.dir, "processbench")
    folder.clear()
    folder.path.mkdir()
    stats = ProcessBenchWorker(config, folder, [list(solutions)])(0)
    assert stats.rows == len(solutions)
    return list(folder.rows())


STEPS = {
    "plain": ["1 + 2 = 3", "3 + 4 = 7", "Answer: 7"],
    "single": ["1 + 2 = 3 so 7"],
    "empty": ["1 + 2 = 3", "", "", "7"],
    "ends empty": ["1 + 2 = 3", ""],
    "blank": ["", " "],
    "lines in a step": ["1 + 2\n= 3\n\n", "é🙂 7"],
}


def test_step_rewards_are_those_of_the_prefixes_of_each_row_alone(config: RunConfig) -> None:
    """Other rows, some to the same problem, change nothing; each given step keeps its number, empty ones too."""
    found = scored(config, *(Solution("gsm8k", name, "1+2+4?", steps, -1) for name, steps in STEPS.items()))
    scorer = Scorer.from_pretrained(config.run.dir / "checkpoint", dtype="float32")
    for row, steps in zip(found, STEPS.values(), strict=True):
        text, ends = "\n".join(steps), row["step_ends"]
        assert row["response_tokens"] == encode_response(scorer.tokenizer, text)
        (((*token_rewards,),),) = scorer.score_tokens([PromptGroup(row["prompt_tokens"], [row["response_tokens"]])])
        values = [sum(token_rewards[:end]) for end in ends]
        assert len(row["step_rewards"]) == len(steps) and ends[-1] == len(token_rewards)
        assert [sum(row["step_rewards"][: step + 1]) for step in range(len(steps))] == pytest.approx(values, abs=1e-5)
        for step, end in enumerate(ends[:-1]):
            prefix = "\n".join(steps[: step + 1]) + "\n"
            up_to_it, before_it = (decode(scorer.tokenizer, row["response_tokens"][:stop]) for stop in (end, end - 1))
            assert up_to_it.startswith(prefix) and not before_it.startswith(prefix)
    assert [row["num_empty_steps"] for row in found] == [0, 0, 2, 1, 2, 0]


def test_the_prompt_is_the_one_the_prm_was_trained_with(config: RunConfig) -> None:
    (row,) = scored(config, Solution("gsm8k", "a", "1+2+4?", ["7"], -1))
    text = load_tokenizer(str(config.run.dir / "checkpoint")).decode(row["prompt_tokens"])
    assert text == "<|system|>Check.<|end|><|user|>1+2+4?<|end|><|assistant|>"


def test_what_cannot_be_scored_keeps_its_reason_and_no_reward(config: RunConfig) -> None:
    unscored = {
        "no_steps": [],
        "too_long": ["word " * 500],
        "not_lossless": ["a <|end|> b"],
    }
    found = scored(config, *(Solution("gsm8k", name, "1?", steps, -1) for name, steps in unscored.items()))
    assert [row["error"].split(":")[0] for row in found] == list(unscored)
    assert all(row["step_rewards"] is None and row["response_tokens"] is None for row in found)


def reported(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[dict[str, Any], str]:
    """Rows need subset, label and step_rewards, a token a step."""
    folder = StageFolder(tmp_path, "processbench")
    folder.path.mkdir()
    full = [{"step_ends": [*range(1, len(row["step_rewards"] or []) + 1)], "num_empty_steps": 0} | row for row in rows]
    folder.write_part(0, full)
    section = {"subsets": ["gsm8k", "math"], **settings}
    config = RunConfig.model_validate({"run": {"dir": str(tmp_path)}, "processbench": section})
    report = make_report(config, folder)
    return report, write_report(report, folder.path)


def row(subset: str, label: int, step_rewards: list[float] | None, **more: Any) -> dict[str, Any]:
    return {"subset": subset, "label": label, "step_rewards": step_rewards, **more}


ROWS = [
    row("gsm8k", -1, [3.0, 3.0]),
    row("gsm8k", 1, [3.0, -1.0]),
    row("math", -1, [0.5]),  # below the threshold of gsm8k, above the best one here
    row("math", -1, [2.0, 2.0], num_empty_steps=1),
    row("math", 0, [-4.0, 5.0]),
    row("math", 1, None, error="too_long: 9 tokens"),
    row("math", 1, [1.0, float("nan")]),
]


def test_the_threshold_of_one_subset_is_used_on_the_other_and_the_oracle_stands_beside(tmp_path: Path) -> None:
    """Steps: gsm8k's threshold lies between -1 and 3, in the middle; math: 1 of 1 wrong and 1 of 2 right, F1 2/3."""
    report, table = reported(tmp_path, ROWS)
    step = report["protocols"]["step"]
    assert step["threshold"] == pytest.approx(1.0) and step["subsets"]["gsm8k"]["f1"]["value"] == 1.0
    math = step["subsets"]["math"]
    assert math["error_accuracy"]["value"] == 1.0 and math["correct_accuracy"]["value"] == 0.5
    assert math["f1"]["value"] == pytest.approx(2 / 3) and math["oracle_threshold"]["f1"] == 1.0
    assert step["mean_f1"]["value"] == pytest.approx(5 / 6)
    assert step["mean_f1_of_others"]["value"] == pytest.approx(2 / 3)
    assert "oracle threshold" in table and "66.7" in table and "mean without gsm8k" in table
    assert json.loads((tmp_path / "processbench" / "report.json").read_text()) == report
    assert "| step | 100.0 [" in (tmp_path / "processbench" / "report.md").read_text()


def test_rows_of_every_kind_are_counted_and_failed_ones_take_no_part(tmp_path: Path) -> None:
    report, table = reported(tmp_path, ROWS)
    assert report["subsets"]["math"] == {
        "num_solutions": 3,
        "num_with_a_wrong_step": 1,
        "num_single_step": 1,
        "num_with_empty_steps": 1,
        "failed": {"too_long": 1, "reward is not a finite number": 1},
    }
    assert table.endswith("Left out: of math 1 too_long, 1 reward is not a finite number.")


def test_baselines_need_no_model(tmp_path: Path) -> None:
    """Never naming a step has F1 0. Uniform scores on gsm8k: (1-t)^2 and t(1-t), so 2 t (1-t)^2, best at 1/3."""
    baselines = reported(tmp_path, ROWS)[0]["baselines"]
    always = baselines["always -1"]["subsets"]["math"]
    assert (always["f1"], always["error_accuracy"], always["correct_accuracy"]) == (0.0, 0.0, 1.0)
    drawn, threshold = baselines["random scores"], baselines["random scores"]["threshold"]
    right, wrong = ((1 - threshold) + (1 - threshold) ** 2) / 2, threshold
    assert drawn["subsets"]["math"]["f1"] == pytest.approx(2 * right * wrong / (right + wrong))
    assert threshold == pytest.approx(1 / 3, abs=1e-3)
    assert drawn["subsets"]["gsm8k"]["f1"] == pytest.approx(8 / 27, abs=1e-4)


def test_long_steps_and_late_ones_are_baselines_for_rewards_that_fall_with_length(tmp_path: Path) -> None:
    """gsm8k's wrong step is its longest and its right ones are short; in math the wrong one is short and first."""
    ends = [{"step_ends": each} for each in ([2, 4], [2, 9], [1], [2, 4], [1, 8])]
    made = [{**row, **more} for row, more in zip(ROWS[:5], ends, strict=True)]
    baselines = reported(tmp_path, made)[0]["baselines"]
    for name in ("step length", "prefix length"):
        assert baselines[name]["subsets"]["gsm8k"]["f1"] == 1.0
        assert baselines[name]["subsets"]["math"]["correct_accuracy"] == 1.0
        assert baselines[name]["mean_f1_of_others"] == baselines[name]["subsets"]["math"]["f1"] == 0.0


def test_a_subset_without_wrong_steps_has_no_f1_and_so_there_is_no_mean(tmp_path: Path) -> None:
    report, table = reported(tmp_path, [*ROWS[:2], row("math", -1, [0.0])])
    step = report["protocols"]["step"]
    assert step["subsets"]["math"]["f1"]["value"] is None and step["mean_f1"]["value"] is None
    assert step["subsets"]["math"]["oracle_threshold"] is None and "n/a" in table


def test_nothing_scored_to_choose_a_threshold_on_is_an_error_not_a_zero(tmp_path: Path) -> None:
    failing = [row("gsm8k", -1, [1.0]), row("gsm8k", 0, None, error="too_long: 9 tokens"), ROWS[2]]
    with pytest.raises(UserError, match=r"'gsm8k' too little could be scored .*too_long"):
        reported(tmp_path, failing)
