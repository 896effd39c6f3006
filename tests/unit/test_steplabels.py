"""What completions, a verifier's confidence and the truth say of each step; without Ray, on tiny models."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.core.steplabels import confidence_labels, labels_before, soft_label
from prm_ray.errors import UserError
from prm_ray.models import load_tokenizer, write_prm_json
from prm_ray.scorer import Scorer
from prm_ray.stages import step_label
from prm_ray.stages.completions import CompletionWorker, completion_options
from prm_ray.stages.labelshards import plan_shards
from prm_ray.stages.sampler import make_sampler
from prm_ray.stages.trainingsets import selected_responses
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config, write_reference_texts

NUM_COMPLETIONS, MAX_TOKENS = 6, 24


def config_of(tmp_path: Path, model: str, method: str, **sections: dict[str, Any]) -> RunConfig:
    base: dict[str, dict[str, Any]] = {
        "label": {"judge": "tests.judges:by_first_word"},
        "generate": {"max_tokens": MAX_TOKENS},
        "prompt": {"max_tokens": 40},
        "step_label": {"method": method, "num_completions": NUM_COMPLETIONS},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return tiny_config(tmp_path / "run", model, **base)


def labelled(config: RunConfig, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the worker of the config's method makes of these rows, all in one shard."""
    write_reference_texts(config, [rows])
    folder = StageFolder(config.run.dir, "step_label")
    folder.path.mkdir()
    shards = plan_shards(config)
    if config.step_label.method == "monte_carlo":
        options = completion_options(config, config.model.name)
        asyncio.run(CompletionWorker(config, folder, options, shards)(0))
    else:
        step_label.StepLabelWorker(config, folder, shards)(0)
    return folder.read_part(0)


def responses(*texts: str, problem: str = "1+2", **columns: Any) -> list[dict[str, Any]]:
    return [{"problem": problem, "text": text, "sample_index": index} | columns for index, text in enumerate(texts)]


def test_a_soft_label_is_the_share_of_right_ones_among_the_judged():
    assert soft_label([True, None, False, True]) == pytest.approx(2 / 3)
    assert soft_label([None, None]) is None


def test_a_step_is_wrong_from_the_first_large_relative_drop_on():
    """0.4 -> 0.18 loses 55 %; 0.9 -> 0.4 is a larger drop, but not relative to 0.5 -> 0.2."""
    assert confidence_labels([0.5, 0.4, 0.18, 0.9], before=0.5, threshold=-0.5) == [1, 1, 0, 0]
    assert confidence_labels([0.5, 0.4, 0.18, 0.9], before=0.5, threshold=-0.6) == [1, 1, 1, 1]
    assert confidence_labels([0.2, 0.9], before=0.5, threshold=-0.5) == [0, 0]
    assert confidence_labels([0.26, 0.0, 0.0], before=0.5, threshold=-0.5) == [1, 0, 0]


def test_labels_end_at_the_first_wrong_step():
    assert labels_before(1, 3) == [1.0, 0.0, 0.0]
    assert labels_before(None, 2) == [1.0, 1.0]


def test_completions_are_judged_behind_their_prefix_and_the_end_has_the_outcome(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "monte_carlo")
    right, wrong, open_, odd = labelled(
        config, responses("Right\n3\n4", "Wrong\n3", "1\n2\n3", "Odd\n3", correct=False)
    )
    assert right["step_labels"] == [1.0, 1.0, 0.0] and wrong["step_labels"] == [0.0, 0.0]
    shares = [label * NUM_COMPLETIONS for label in open_["step_labels"]]
    assert shares == pytest.approx([round(share) for share in shares], abs=1e-5) and open_["step_label_error"] is None
    assert any(0 < label < 1 for label in open_["step_labels"]), "random completions of even and odd lengths"
    assert odd["step_labels"] == [None, 0.0]
    assert odd["step_label_error"] == f"unjudged: none of a step's {NUM_COMPLETIONS} completions (undecided)"


def test_the_last_step_has_the_chance_of_being_right_where_that_is_known(tmp_path: Path, tiny_model: str):
    rows = responses("Right\n3", "Wrong\n3")
    found = labelled(config_of(tmp_path, tiny_model, "monte_carlo"), [row | {"soft_label": 0.7} for row in rows])
    assert [row["step_labels"][-1] for row in found] == pytest.approx([0.7, 0.7])


def test_equal_prefixes_are_completed_once_and_the_work_is_counted(tmp_path: Path, tiny_model: str):
    """ "1\\n" begins three responses, "1\\n2\\n" two; the same text of another problem is another prefix."""
    rows = responses("1\n2\n3", "1\n2\n3", "1\n5") + responses("1\n2", problem="2+2")
    config = config_of(tmp_path, tiny_model, "monte_carlo")
    first, again, other, _ = labelled(config, rows)
    assert first["step_labels"] == again["step_labels"] and other["step_labels"][0] == first["step_labels"][0]
    counts = StageFolder(config.run.dir, "step_label").part_counts(0)["work"]
    assert (counts["num_prefixes"], counts["num_completions"]) == (3, 3 * NUM_COMPLETIONS)
    prompt = len(first["prompt_tokens"])
    assert counts["prefix_tokens"] == 3 * prompt + 2 * first["step_ends"][0] + first["step_ends"][1]
    one, two = first["step_ends"][:2]
    longest = 2 * (MAX_TOKENS - one) + MAX_TOKENS - two
    assert longest < counts["completion_tokens"] <= NUM_COMPLETIONS * longest, "as long as a response may still become"


def test_rows_without_an_outcome_or_beyond_num_responses_stay_unlabelled(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "monte_carlo", step_label={"num_responses": 1})
    unknown, broken, first, second = responses("Right\n1", "Right\n2", "Right\n3", "Right\n4")
    rows = [second, unknown | {"correct": None, "label_error": "timeout: x"}, broken | {"error": "too_long: x"}, first]
    found = labelled(config, [*rows, first | {"split": "test", "problem": "held out"}])
    assert [row["text"] for row in found] == ["Right\n4", "Right\n1", "Right\n2", "Right\n3"]
    assert [row["step_labels"] for row in found] == [None, None, None, [1.0, 1.0]]
    assert {row["step_label_error"] for row in found} == {None}


def test_steps_that_cannot_be_completed_say_why(tmp_path: Path, tiny_model: str):
    long = "Right\n" + "9" * MAX_TOKENS + "\n1"
    rows = responses(long) + responses("Right\n3", problem="2+2", gold_answer=None)
    too_long, no_gold = labelled(config_of(tmp_path, tiny_model, "monte_carlo"), rows)
    assert too_long["step_labels"] == [1.0, None, 1.0] and too_long["step_label_error"].startswith("no_room: a step")
    assert no_gold["step_labels"] == [None, 1.0] and no_gold["step_label_error"].startswith("no_gold_answer: ")


def test_every_completion_keeps_its_own_limit(tmp_path: Path, tiny_model: str):
    """Two fit into a batch; the third, with 63 of the 64 tokens that are read, must not shorten what they may say."""
    config = config_of(tmp_path, tiny_model, "monte_carlo")
    options = completion_options(config, tiny_model)
    prompts, limits = [[20] * 5, [22] * 30, [21] * 63], [24, 3, 24]
    samples = asyncio.run(make_sampler(options).sample(prompts, [1, 2, 3], limits))
    for each, most in zip(samples, [24, 3, 1], strict=True):
        assert max(len(sample.tokens) for sample in each) == most
        assert all(sample.finish_reason == "stop" or len(sample.tokens) == most for sample in each)


def test_a_model_with_learned_positions_never_runs_out_of_them(tmp_path: Path, tiny_model: str):
    """In one batch, the short prompt's response would be padded to 60 + 24 places of the 64 there are."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer, folder = load_tokenizer(tiny_model), str(tmp_path / "gpt2")
    tokenizer.save_pretrained(folder)
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    options = completion_options(config_of(tmp_path, folder, "monte_carlo"), folder)
    samples = asyncio.run(make_sampler(options).sample([[20] * 5, [21] * 60], [1, 2], [24, 4]))
    assert [max(len(sample.tokens) for sample in each) for each in samples] == [24, 4]


def test_the_truth_about_each_line(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "truth")
    texts = ("18+9-6\n27-6\n21", "18+9-6\n28-6\n21", "no idea\n21", "18+9-6\n27-6\n")
    rows = labelled(config, responses(*texts, problem="18+9-3*2"))
    assert [row["step_labels"] for row in rows] == [[1, 1, 1], [1, 0, 0], [0, 0], [1, 1]]


@pytest.fixture
def verifier(tmp_path: Path, tiny_model: str, other_tiny_model: str) -> Path:
    """An implicit PRM: other weights over the same reference, at a scale where its confidence moves."""
    folder = Path(shutil.copytree(other_tiny_model, tmp_path / "verifier"))
    write_prm_json(folder, {"beta": 0.5, "reference": tiny_model, "with_reference": False})
    return folder


def test_confidence_labels_come_from_the_verifiers_prefix_values(tmp_path: Path, tiny_model: str, verifier: Path):
    """Each prefix is scored alone here, as a whole response; before the first step stands the problem's mean."""
    sections = {"step_label": {"verifier": str(verifier), "threshold": -0.3}}
    config = config_of(tmp_path, tiny_model, "confidence", **sections)
    rows = labelled(config, responses(*(f"{number}\n{number + 1}\n{number * 7}\n5" for number in range(12))))
    scorer = Scorer.from_pretrained(verifier, dtype="float32", with_reference=True)
    values = []
    for row in rows:
        alone = [PromptGroup(row["prompt_tokens"], [row["response_tokens"][:end]]) for end in row["step_ends"]]
        values.append([1 / (1 + 2.718281828459045 ** -sum(rewards)) for ((rewards),) in scorer.score_tokens(alone)])
    before = sum(values_S[0] for values_S in values) / len(values)
    expected = [confidence_labels(values_S, before, -0.3) for values_S in values]
    assert [row["step_labels"] for row in rows] == expected
    assert 0 < sum(map(sum, expected)) < sum(map(len, expected)), "both kinds of labels occur"


def test_training_reads_the_step_labels_where_the_run_has_them(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "monte_carlo")
    for stage, tokens in (("reference", [1, 2]), ("step_label", [3, 4])):
        folder = StageFolder(config.run.dir, stage)
        folder.path.mkdir(parents=True)
        folder.write_part(0, [{"prompt_id": "p", "split": "train", "correct": True, "response_tokens": tokens}])
    assert selected_responses(config).table["response_tokens"].to_pylist() == [[3, 4]]
    without = config.model_copy(update={"step_label": config.step_label.model_copy(update={"method": "none"})})
    assert selected_responses(without).table["response_tokens"].to_pylist() == [[1, 2]]


def test_a_shard_has_whole_problems_of_the_training_split(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "monte_carlo", step_label={"problems_per_shard": 2})
    problems = [row for number in range(5) for row in responses("1", "2", problem=f"{number}+1")]
    write_reference_texts(config, [problems[:6], problems[6:] + responses("3", problem="held out", split="test")])
    shards = plan_shards(config)
    assert [(shard.part, shard.prompt_ids) for shard in shards] == [
        (0, ["0+1", "1+1"]),
        (0, ["2+1"]),
        (1, ["3+1", "4+1"]),
    ]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"step_label": {"method": "confidence"}}, "method 'confidence' needs a verifier"),
        (
            {"step_label": {"method": "truth"}, "problems": {"train": "mine.jsonl"}},
            r"'arithmetic' \(got 'mine.jsonl'\)",
        ),
        ({"step_label": {"method": "truth"}, "import": {"source": "r.jsonl"}}, r"'arithmetic' \(got 'r.jsonl'\)"),
        ({"step_label": {"method": "truth"}}, r"step_rule must be 'newline' \(got 'blank_line'\)"),
        (
            {"step_label": {"method": "monte_carlo"}, "generate": {"temperature": 0, "num_samples": 1}},
            r"num_completions must be 1 \(got 8\)",
        ),
    ],
)
def test_settings_that_no_step_label_can_come_of(sections: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(sections)


def test_a_verifier_that_cannot_be_used_is_named(tmp_path: Path, tiny_model: str, verifier: Path):
    plain = config_of(tmp_path, tiny_model, "confidence", step_label={"verifier": tiny_model})
    with pytest.raises(UserError, match=r"is not a trained PRM: it has no prm\.json"):
        step_label.check(plain)
    write_prm_json(verifier, {"reward": "oracle"})
    with pytest.raises(UserError, match="was trained with reward 'oracle'; it must be one of log_ratio"):
        step_label.check(config_of(tmp_path, tiny_model, "confidence", step_label={"verifier": str(verifier)}))


def test_responses_without_any_gold_answer_are_refused_before_an_engine_starts(tmp_path: Path, tiny_model: str):
    config = config_of(tmp_path, tiny_model, "monte_carlo")
    write_reference_texts(config, [responses("1\n2", gold_answer=None)])
    with pytest.raises(UserError, match=r"has no gold answers.* import\.fields"):
        step_label.run(config, StageFolder(config.run.dir, "step_label"))
