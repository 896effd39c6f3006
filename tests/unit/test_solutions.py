"""Solutions of others read by reward models with heads and by published ones, as ProcessBench asks them."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from prm_ray.config import RunConfig, parse_config
from prm_ray.errors import UserError
from prm_ray.headscorer import HeadScorer
from prm_ray.models import load_tokenizer, write_prm_json
from prm_ray.publishedscorer import PublishedScorer
from prm_ray.rewardmodels import load_with_value_head
from prm_ray.stages.pipeline import clear_from, run_stage
from prm_ray.stages.processbench import ProcessBenchWorker
from prm_ray.stages.processbench_report import make_report
from prm_ray.stages.solutions import Solution, open_reader
from prm_ray.tables import StageFolder
from tests.published import save_published
from tests.tiny import CHAT_TEMPLATE

STEPS = ["1 + 2 = 3", "3 + 4 = 8", "Answer: 8"]


def scored(config: RunConfig, *solutions: Solution) -> list[dict[str, Any]]:
    folder = StageFolder(config.run.dir, "processbench")
    folder.path.mkdir(parents=True)
    ProcessBenchWorker(config, folder, [list(solutions)])(0)
    return list(folder.rows())


def config_of(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    whole = {"run": {"dir": str(folder)}, "model": {"dtype": "float32"}, "reference": {"step_rule": "newline"}}
    return parse_config(whole | {"processbench": {"subsets": ["gsm8k", "math"]}} | sections)


def test_a_head_gives_each_given_step_the_logit_at_its_end(tiny_model: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    load_with_value_head(tiny_model, "float32", seed=3).save_pretrained(checkpoint)
    load_tokenizer(tiny_model).save_pretrained(checkpoint)
    write_prm_json(checkpoint, {"reward": "value_head", "step_rule": "newline", "prompt": {"system": "Check."}})
    config = config_of(tmp_path, train={"reward": "value_head", "objective": "ce"})
    rows = scored(
        config,
        Solution("gsm8k", "a", "1+2+4?", STEPS, 1),
        Solution("gsm8k", "b", "1+2+4?", STEPS[:1], -1),
        Solution("math", "c", "1+2+4?", ["", "7"], -1),
    )
    for row, steps in zip(rows[:2], (STEPS, STEPS[:1]), strict=True):
        (alone,) = HeadScorer.from_pretrained(checkpoint, dtype="float32").score("1+2+4?", ["\n".join(steps)])
        assert row["step_rewards"] == pytest.approx(alone.step_rewards, abs=1e-5)
    assert len(rows[2]["step_rewards"]) == 2 and rows[2]["error"] is None
    report = make_report(config, StageFolder(tmp_path, "processbench"))
    assert report["reward"] == "value_head" and list(report["protocols"]) == ["step"]


def test_a_head_that_is_no_language_model_cannot_answer(tmp_path: Path) -> None:
    config = config_of(tmp_path, train={"reward": "value_head", "objective": "ce"})
    with pytest.raises(UserError, match=r"no policy stage: train\.reward 'value_head' makes no model that answers"):
        run_stage(config, "policy")


def test_a_published_model_is_asked_in_its_own_format(tmp_path: Path) -> None:
    """It needs no stage before it; a step that it has no number for is an error row, never a reward of 0."""
    model = save_published(tmp_path / "model", "qwen_prm")
    config = config_of(tmp_path / "run", score={"model": model, "style": "qwen_prm"})
    assert config.before("processbench") == () and config.onwards("processbench") == ("processbench",)
    rows = scored(
        config,
        Solution("gsm8k", "a", "1+2+4?", STEPS, 1),
        Solution("gsm8k", "b", "1+2+4?", ["3", ""], -1),
        Solution("gsm8k", "c", "1+2+4?", STEPS[:1], -1),
    )
    scorer = PublishedScorer.from_pretrained(model, style="qwen_prm", dtype="float32")
    expected = scorer.score("1+2+4?", [STEPS, STEPS[:1]])
    for row, alone in zip(rows[::2], expected, strict=True):
        assert row["step_rewards"] == pytest.approx(alone.step_rewards, abs=1e-5)
        assert len(row["step_ends"]) == len(row["step_rewards"]) and row["step_ends"][-1] == len(row["response_tokens"])
    assert rows[1]["error"].startswith("not_scored: step 2 of 2 is empty") and rows[1]["step_rewards"] is None
    assert list(make_report(config, StageFolder(tmp_path / "run", "processbench"))["protocols"]) == ["step"]
    with pytest.raises(UserError, match=r"no policy stage: it scores with score.model"):
        run_stage(config, "policy")
    clear_from(config, "processbench")
    assert not StageFolder(tmp_path / "run", "processbench").path.exists()


def test_given_steps_end_with_their_tokens_where_a_tokenizer_leaves_white_space_out(tmp_path: Path) -> None:
    """The next step's first token begins behind the newline that closes this one, and is the next step's."""
    model = save_published(tmp_path / "model", "qwen_prm")
    numbers = [*"123478+=:", "Answer"]
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(["?", *numbers])}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="<|end|>")
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    reader = open_reader(config_of(tmp_path / "run", score={"model": model, "style": "qwen_prm"}))
    encoded = reader.encoded(Solution("gsm8k", "a", "1+2+4?", STEPS, 1))
    assert len(encoded["response_tokens"]) == 12
    assert encoded["step_ends"] == [5, 10, 12]
