"""Real vLLM, real small model: what comes out of generate and label for problems of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import decode, load_model, load_tokenizer
from prm_ray.stages import generate, label
from prm_ray.tables import StageFolder

TRAIN: list[dict[str, Any]] = [
    *({"problem": f"What is {number} + {number}?", "answer": str(2 * number)} for number in range(2, 6)),
    {"problem": "word " * 300, "answer": "1"},
    {"problem": None, "answer": "1"},
]
TEST: list[dict[str, Any]] = [{"problem": "What is 30 + 1?", "answer": "31"}, {"problem": "Any?", "answer": None}]
NUM_SAMPLES, MAX_TOKENS = 3, 24


def make_config(folder: Path, model: Path, backend: str) -> RunConfig:
    for name, rows in (("train", TRAIN), ("test", TEST)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "run": {"dir": folder / "run"},
        "model": {"name": str(model)},
        "prompt": {"max_tokens": 200},
        "problems": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "generate": {"backend": backend, "num_samples": NUM_SAMPLES, "max_tokens": MAX_TOKENS, "problems_per_shard": 3},
        "label": {"timeout_seconds": 60},
    }
    return RunConfig.model_validate(data)


def begun(config: RunConfig, stage: str) -> StageFolder:
    folder = StageFolder(config.run.dir, stage)
    folder.begin(config.identity(stage))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, ray_local: None) -> RunConfig:
    """A run whose responses vLLM has made."""
    pytest.importorskip("vllm")
    config = make_config(tmp_path_factory.mktemp("generate"), demo_model, "vllm")
    result = generate.run(config, begun(config, "generate"))
    assert (result.rows_in, result.rows_out) == (8, 5 * NUM_SAMPLES + 3)
    assert result.failed == {"prompt_too_long": 1, "null_problem": 1, "null_answer": 1} and result.tokens > 0
    return config


def responses(config: RunConfig) -> list[dict[str, Any]]:
    return [row for row in StageFolder(config.run.dir, "generate").rows() if row["error"] is None]


def check_every_row_once(config: RunConfig) -> None:
    rows = list(StageFolder(config.run.dir, "generate").rows())
    keys = [(row["prompt_id"], row["sample_index"]) for row in rows]
    assert len(keys) == len(set(keys)) == 5 * NUM_SAMPLES + 3
    assert [row["split"] for row in rows] == ["train"] * (4 * NUM_SAMPLES + 2) + ["test"] * (NUM_SAMPLES + 1)


def test_every_problem_and_sample_is_there_once_and_bad_problems_say_why(config: RunConfig):
    check_every_row_once(config)
    errors = {row["error"] for row in StageFolder(config.run.dir, "generate").rows()} - {None}
    assert {error.split(":")[0] for error in errors} == {"prompt_too_long", "null_problem", "null_answer"}
    assert any(error.endswith(" tokens, at most 200") for error in errors)


def test_tokens_finish_reasons_and_texts_belong_together(config: RunConfig, demo_model: Path):
    tokenizer = load_tokenizer(str(demo_model))
    for row in responses(config):
        tokens = row["response_tokens"]
        assert row["text"] == decode(tokenizer, tokens) and len(tokens) == len(row["sampled_logprobs"])
        ended = tokens[-1] == tokenizer.eos_token_id
        assert row["finish_reason"] == ("stop" if ended else "length") and (ended or len(tokens) == MAX_TOKENS)
        assert decode(tokenizer, row["prompt_tokens"]).count(row["problem"]) == 1
    assert len({row["text"] for row in responses(config)}) > 5


def check_logprobs(config: RunConfig, model_folder: Path, tolerance: float) -> None:
    model = load_model(str(model_folder), "float32")
    differences = []  # of all: one token of hundreds may differ by far in bfloat16
    for row in responses(config)[::4]:
        prompt, response = row["prompt_tokens"], row["response_tokens"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        differences.append((expected - torch.tensor(row["sampled_logprobs"])).abs())
        assert differences[-1].mean() < 10 * tolerance
    assert torch.cat(differences).mean() < tolerance


def test_the_log_probs_are_the_models_own(config: RunConfig, demo_model: Path):
    check_logprobs(config, demo_model, tolerance=0.1)  # sampled in bfloat16


def test_a_lost_part_is_made_again_and_the_others_stay(config: RunConfig):
    folder = StageFolder(config.run.dir, "generate")
    before = {index: folder.part_path(index).stat().st_mtime_ns for index in (0, 2)}
    folder.part_path(1).unlink()
    generate.run(config, begun(config, "generate"))
    assert {index: folder.part_path(index).stat().st_mtime_ns for index in (0, 2)} == before
    check_every_row_once(config)


def test_labels_judge_responses_and_pass_errors_through(config: RunConfig):
    result = label.run(config, begun(config, "label"))
    rows = list(StageFolder(config.run.dir, "label").rows())
    assert result.rows_out == len(rows) == 5 * NUM_SAMPLES + 3 and result.failed["prompt_too_long"] == 1
    for row in rows:
        assert (row["correct"] is None) == (row["error"] is not None) and row["label_error"] is None
    assert result.details["correct"] == sum(row["correct"] or 0 for row in rows)


def test_transformers_samples_the_same_columns(tmp_path: Path, tiny_model: Path, ray_local: None):
    config = make_config(tmp_path, tiny_model, "transformers")
    generate.run(config, begun(config, "generate"))
    check_every_row_once(config)
    check_logprobs(config, tiny_model, tolerance=0.02)
    for row in responses(config):
        assert row["finish_reason"] == ("stop" if row["response_tokens"][-1] == 0 else "length")
        assert 0 not in row["response_tokens"][:-1] and len(row["response_tokens"]) <= MAX_TOKENS


def test_equal_samples_are_not_asked_for(tmp_path: Path, tiny_model: Path):
    config = make_config(tmp_path, tiny_model, "transformers")
    greedy = config.generate.model_copy(update={"temperature": 0.0})
    with pytest.raises(UserError, match=r"generate\.num_samples must be 1, not 3"):
        generate.check(config.model_copy(update={"generate": greedy}))


def test_a_generator_of_ones_own_and_prompts_that_it_does_not_survive(tmp_path: Path, tiny_model: str, ray_local: None):
    config = make_config(tmp_path, Path(tiny_model), "tests.generators:Parrot")
    odd = [{"problem": f"a {word} one", "answer": "1"} for word in ("deadly", "refused")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*TRAIN[:4], *odd]))
    result = generate.run(config, begun(config, "generate"))
    assert result.failed == {"worker_died": 1, "sampler_error": 1, "null_answer": 1}
    rows = {row["problem"]: row for row in StageFolder(config.run.dir, "generate").rows()}
    assert rows["a deadly one"]["error"] == "worker_died: 2 times when asked for this alone"
    assert rows["a refused one"]["error"] == "sampler_error: RuntimeError: no such prompt, please"
    assert len(responses(config)) == 5 * NUM_SAMPLES
    assert all(row["response_tokens"] == row["prompt_tokens"][-3:] for row in responses(config))


def test_a_generator_that_is_not_there_is_told_before_anything_starts(tmp_path: Path, tiny_model: str):
    with pytest.raises(UserError, match=r"generate.backend 'tests.generators:Nobody' does not load"):
        generate.check(make_config(tmp_path, Path(tiny_model), "tests.generators:Nobody"))
