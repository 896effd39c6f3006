"""Published reward models: tiny ones with the published files' layout, against transformers used as their cards say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from prm_ray.config import RunConfig, parse_config
from prm_ray.errors import UserError
from prm_ray.models import encode_response, load_tokenizer
from prm_ray.publishedscorer import PublishedScorer
from prm_ray.stages.score import ScoreWorker, check
from prm_ray.tables import StageFolder
from tests.published import save_published

PROBLEM = "1 + 2 + 3 + 4"
STEPS = [["1 + 2 = 3", "3 + 3 = 6", "Answer: 10"], ["1 + 2 = 3", "3 + 3 = 7", "7 + 4 = 11", "Answer: 11"], ["10"]]
RESPONSES = ["\n\n".join(steps) for steps in STEPS]
STYLES = ("value_head", "math_shepherd", "rlhflow", "qwen_prm")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@torch.no_grad()
def as_the_card_says(folder: str, style: str, steps: list[str]) -> list[float]:
    """Logits of the steps of one response, by the model's own forward pass over one text at a time, nothing packed."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Qwen2Model

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def ids(turns: list[dict[str, str]]) -> torch.Tensor:
        return tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]

    if style == "value_head":
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
        prefixes = ["\n\n".join(steps[: number + 1]) for number in range(len(steps))]
        turns = [[turn("user", PROBLEM), turn("assistant", prefix)] for prefix in prefixes]
        return [model(ids(each)).logits[0, 0].item() for each in turns]
    if style == "math_shepherd":
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        words = [tokenizer.encode(word)[-1] for word in (" +", " -", " ки")]
        tokens = torch.tensor([tokenizer.encode(f"{PROBLEM} " + "\n".join(f"{step} ки" for step in steps))])
        right_S = model(tokens).logits[:, :, words[:2]].double().softmax(dim=-1)[:, :, 0][tokens == words[2]]
        return torch.logit(right_S).tolist()
    if style == "rlhflow":
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        words = [tokenizer.encode(word)[-1] for word in "+-"]
        found: list[float] = []
        turns_so_far: list[dict[str, str]] = []
        for number, step in enumerate(steps):
            turns_so_far += [turn("user", f"{PROBLEM} {step}" if number == 0 else step), turn("assistant", "+")]
            right = model(ids(turns_so_far)).logits[0, -3, words].double().softmax(dim=-1)[0]  # behind: "+", end
            found.append(torch.logit(right).item())
        return found
    body = Qwen2Model.from_pretrained(folder).eval()
    head = load_file(Path(folder) / "model.safetensors")
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    said = "<extra_0>".join(steps) + "<extra_0>"
    tokens = ids([turn("system", system), turn("user", PROBLEM), turn("assistant", said)])
    hidden = functional.relu(functional.linear(body(tokens)[0], head["score.0.weight"], head["score.0.bias"]))
    logits_T2 = functional.linear(hidden, head["score.2.weight"], head["score.2.bias"])[0]
    right_S = logits_T2.double().softmax(dim=-1)[tokens[0] == tokenizer.encode("<extra_0>")[0]][:, 1]
    return torch.logit(right_S).tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("published")
    return {style: save_published(root / style, style) for style in STYLES}


@pytest.mark.parametrize("style", STYLES)
def test_step_rewards_are_those_of_the_model_card(folders: dict[str, str], style: Any) -> None:
    expected = [as_the_card_says(folders[style], style, steps) for steps in STEPS]
    for budget in (1000, 40):
        scorer = PublishedScorer.from_pretrained(folders[style], style=style, dtype="float32", token_budget=budget)
        for responses in (RESPONSES, STEPS):
            scored = scorer.score(PROBLEM, responses)
            for ours, theirs, text in zip(scored, expected, RESPONSES, strict=True):
                assert ours.step_rewards == pytest.approx(theirs, abs=2e-5)
                assert "".join(ours.steps) == ours.text == text
                assert ours.rewards["last"] == ours.step_rewards[-1]
    backwards = scorer.score(PROBLEM, RESPONSES[::-1])
    for ours, theirs in zip(reversed(backwards), expected, strict=True):
        assert ours.step_rewards == pytest.approx(theirs, abs=2e-5)
    spread = {round(value, 3) for logits in expected for value in logits}
    assert len(spread) > 4, "the comparison would pass for a constant"


def test_an_outcome_model_is_read_where_transformers_reads_it(tmp_path: Path) -> None:
    """With a padding token that also closes turns, that is one token earlier."""
    folder = save_published(tmp_path, "value_head", pad_is_end_of_turn=True)
    scorer = PublishedScorer.from_pretrained(folder, style="value_head", dtype="float32")
    (scored,) = scorer.score(PROBLEM, RESPONSES[:1])
    assert scored.step_rewards == pytest.approx(as_the_card_says(folder, "value_head", STEPS[0]), abs=2e-5)
    assert scorer.questions(PROBLEM, STEPS[0])[-1].places[0] == len(scorer.questions(PROBLEM, STEPS[0])[-1].tokens) - 2


def test_a_head_under_its_older_name_is_found(folders: dict[str, str], tmp_path: Path) -> None:
    """UltraRM and Eurus-RM call it regression_head."""
    for path in Path(folders["value_head"]).glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["regression_head.weight"] = tensors.pop("score.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    old, new = (
        PublishedScorer.from_pretrained(folder, style="value_head", dtype="float32").score(PROBLEM, RESPONSES)
        for folder in (folders["value_head"], tmp_path)
    )
    assert [each.step_rewards for each in old] == [each.step_rewards for each in new]


def test_a_tag_in_the_text_is_not_taken_for_one_of_ours(folders: dict[str, str]) -> None:
    shepherd = PublishedScorer.from_pretrained(folders["math_shepherd"], style="math_shepherd", dtype="float32")
    (question,) = shepherd.questions("the word ки means", STEPS[0])
    assert len(question.places) == 3
    qwen = PublishedScorer.from_pretrained(folders["qwen_prm"], style="qwen_prm", dtype="float32")
    with pytest.raises(UserError, match="has the tag '<extra_0>' in its text"):
        qwen.score(PROBLEM, ["1 <extra_0>\n\n2"])


def test_a_model_of_another_style_is_one_clear_line(tiny_model: str, folders: dict[str, str]) -> None:
    for folder, style, message in (
        (tiny_model, "value_head", "has no value head: its files lack 'score.weight'"),
        (tiny_model, "math_shepherd", "has no token 'ки'"),
        (tiny_model, "qwen_prm", "has no token '<extra_0>'"),
        (folders["math_shepherd"], "rlhflow", "has no chat template"),
        (folders["value_head"], "qwen_prm", "is of type 'llama'; a head as of Qwen2.5-Math-PRM needs 'qwen2'"),
    ):
        with pytest.raises(UserError, match=message):
            PublishedScorer.from_pretrained(folder, style=style)  # pyright: ignore[reportArgumentType]


def test_what_cannot_be_asked_is_said(folders: dict[str, str]) -> None:
    scorer = PublishedScorer.from_pretrained(folders["rlhflow"], style="rlhflow", dtype="float32")
    with pytest.raises(UserError, match="a response is empty"):
        scorer.score(PROBLEM, [[]])
    with pytest.raises(UserError, match="responses is one text, 'abc'; it must be a list of texts"):
        scorer.score(PROBLEM, "abc")
    with pytest.raises(UserError, match="style 'llm' must be one of value_head, math_shepherd"):
        PublishedScorer.from_pretrained(folders["rlhflow"], style="llm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="step 2 of 2 is empty"):
        scorer.score(PROBLEM, [["1", " "]])
    with pytest.raises(UserError, match=r"have \d+ tokens, the model reads 256"):
        scorer.score(PROBLEM, ["ab" * 300])


def test_a_text_beyond_a_sliding_window_is_refused_as_one_beyond_the_context(tmp_path: Path) -> None:
    folder = Path(save_published(tmp_path, "math_shepherd"))
    config = json.loads((folder / "config.json").read_text()) | {"sliding_window": 60}
    (folder / "config.json").write_text(json.dumps(config))
    scorer = PublishedScorer.from_pretrained(folder, style="math_shepherd", dtype="float32")
    assert len(scorer.score(PROBLEM, ["1 + 2 = 3"])) == 1
    with pytest.raises(UserError, match=r"have \d+ tokens, the model reads 60"):
        scorer.score(PROBLEM, ["1" * 60])


def scoring_run(folder: Path, generator: str, model: str, style: str) -> RunConfig:
    return parse_config(
        {
            "run": {"dir": str(folder)},
            "model": {"name": generator, "dtype": "float32"},
            "score": {"model": model, "style": style},
        }
    )


def test_a_run_can_score_with_it_in_place_of_training(tiny_model: str, folders: dict[str, str], tmp_path: Path) -> None:
    """What it cannot read is an error row, the others keep their rewards."""
    config = scoring_run(tmp_path, tiny_model, folders["qwen_prm"], "qwen_prm")
    assert config.stages() == ("generate", "label", "reference", "score", "rerank", "evaluate")
    tokenizer = load_tokenizer(tiny_model)
    texts = [RESPONSES[0], "ab" * 300, RESPONSES[1]]
    rows = [
        {
            "prompt_id": "p",
            "split": "test",
            "problem": PROBLEM,
            "sample_index": index,
            "text": text,
            "response_tokens": encode_response(tokenizer, text),
        }
        for index, text in enumerate(texts)
    ]
    source, target = StageFolder(tmp_path, "reference"), StageFolder(tmp_path, "score")
    for folder in (source, target):
        folder.path.mkdir()
    source.write_part(0, [*rows, rows[0] | {"split": "train"}])
    stats = ScoreWorker(config, source, target)(0)
    first, long, last = target.read_part(0)
    scorer = PublishedScorer.from_pretrained(folders["qwen_prm"], style="qwen_prm", dtype="float32")
    expected = scorer.score(PROBLEM, [texts[0], texts[2]])
    for row, scored in zip((first, last), expected, strict=True):
        assert row["error"] is None and row["token_rewards"] is None
        assert row["step_rewards"] == pytest.approx(scored.step_rewards, abs=1e-5)
        assert row["reward_min"] == pytest.approx(min(scored.step_rewards), abs=1e-5)
    assert long["error"].startswith("not_scored: prompt and response have") and long["reward_min"] is None
    assert stats.failed == {"not_scored": 1}


def test_a_wrong_model_is_said_before_anything_is_sampled(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no token '<extra_0>'"):
        check(scoring_run(tmp_path, tiny_model, tiny_model, "qwen_prm"))
    with pytest.raises(UserError, match="'/some/where' does not exist"):
        check(scoring_run(tmp_path, tiny_model, "/some/where", "rlhflow"))
    with pytest.raises(UserError, match="model 'x/y' and style None: set both or none"):
        parse_config({"score": {"model": "x/y"}})
