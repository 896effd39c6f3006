"""A model whose config, class and tokenizer are code in its folder: run where the user says so, else refused in one
line."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prm_ray import models
from prm_ray.config import RunConfig
from prm_ray.core.packing import PromptGroup
from prm_ray.errors import UserError
from prm_ray.publishedscorer import load_format
from prm_ray.scorer import Scorer
from prm_ray.scoring.served import load_scorer, reads_tokens_of, served_models
from prm_ray.serve.generation import ChatModel, generator_options
from prm_ray.stages import generate, reference, train
from prm_ray.stages.confidence import check_verifier, load_step_values
from prm_ray.stages.solutions import Solution, open_reader
from prm_ray.tables import StageFolder
from tests.owncode import save_model_with_own_code
from tests.tables_by_hand import mark_done, tiny_config

REFUSED = r"comes with code of its own, which runs only with model\.trust_remote_code = true"
FACTS = {"beta": 1.0, "with_reference": False, "step_rule": "newline", "prompt": {}}
OF_LABEL_TOKENS = {"reward": "label_token", "label_tokens": ["+", "-"]}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return save_model_with_own_code(tmp_path / "own")


def config_of(own: str, trust: bool, **sections: dict[str, Any]) -> RunConfig:
    return tiny_config(Path(own).parent / "run", own, model={"trust_remote_code": trust}, **sections)


@pytest.mark.parametrize(
    "load",
    [models.context_length, models.count_parameters, models.load_tokenizer, models.load_model],
)
def test_what_is_asked_of_a_model_runs_its_code_only_where_that_is_allowed(own: str, load: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=REFUSED) as error:
        load(own)
    assert own in str(error.value) and "\n" not in str(error.value)
    assert load(own, trust_remote_code=True) is not None


@pytest.mark.parametrize("check", [generate.check, reference.check])
def test_a_run_is_refused_before_anything_is_sampled(own: str, check: Callable[[RunConfig], None]) -> None:
    check(config_of(own, trust=True))
    (Path(own) / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')  # that of transformers
    with pytest.raises(UserError, match=REFUSED):
        check(config_of(own, trust=False))


def test_words_of_a_head_are_looked_up_in_a_tokenizer_that_is_code(own: str) -> None:
    """Which needs no chat template of its own: the run may have one."""
    (Path(own) / "chat_template.jinja").unlink()
    model, head = {"name": own, "trust_remote_code": True}, {"reward": "label_token"}
    train.check(RunConfig.model_validate({"model": model, "train": head}))
    with pytest.raises(UserError, match="label_tokens"):
        words = head | {"label_tokens": ["no single token", "-"]}
        train.check(RunConfig.model_validate({"model": model, "train": words}))


def test_a_scorer_with_a_reference_scores_as_the_same_weights_without_own_code(own: str, tiny_model: str) -> None:
    with pytest.raises(UserError, match=REFUSED):
        Scorer.from_pretrained(own, with_reference=False)
    scores = [
        Scorer.from_pretrained(policy, reference, dtype="float32", trust_remote_code=True).score("1+2", ["3\n4"])[0]
        for policy, reference in ((own, own), (own, tiny_model), (tiny_model, tiny_model))
    ]
    assert scores[0].policy_logprobs == scores[1].policy_logprobs == scores[2].policy_logprobs
    assert scores[0].ref_logprobs == scores[1].ref_logprobs == scores[2].ref_logprobs


@pytest.mark.parametrize("facts", [{}, OF_LABEL_TOKENS])
def test_a_verifier_that_is_code_gives_values(own: str, facts: dict[str, Any]) -> None:
    models.write_prm_json(Path(own), FACTS | {"trained_with_reference": False} | facts)
    config = config_of(own, trust=True, step_label={"method": "confidence", "verifier": own})
    check_verifier(config)
    (values,) = load_step_values(config)([PromptGroup([11, 12], [[13, 14]])], [[[1, 2]]])
    assert len(values[0]) == 2 and all(0 < value < 1 for value in values[0])


@pytest.mark.parametrize("facts", [{}, OF_LABEL_TOKENS])
def test_solutions_are_scored_by_a_checkpoint_that_is_code(own: str, facts: dict[str, Any]) -> None:
    config = config_of(own, trust=True, score={"with_reference": False})
    checkpoint = StageFolder(config.run.dir, "train").path
    save_model_with_own_code(checkpoint)
    models.write_prm_json(checkpoint, FACTS | facts)
    solution = Solution("s", "1", "1+2", ["3", "4"], -1)
    reader = open_reader(config)
    row = {"prompt_id": "s-1"} | reader.encoded(solution)
    reader.add_rewards([row], [solution])
    assert len(row["step_rewards"]) == 2


@pytest.mark.parametrize("facts", [{}, OF_LABEL_TOKENS])
@pytest.mark.parametrize("trust", [False, True])
def test_what_is_served_and_searched_with_is_code_only_where_that_is_allowed(
    own: str, facts: dict[str, Any], trust: bool
) -> None:
    sections = {"serve": {"models": {"more": own}}, "score": {"with_reference": False}}
    config = config_of(own, trust=trust, **sections)
    mark_done(config, ["train"])
    checkpoint = StageFolder(config.run.dir, "train").path
    for folder in (checkpoint, Path(own)):
        save_model_with_own_code(folder)
        models.write_prm_json(folder, FACTS | facts)
    for served in served_models(config):
        if not trust:
            with pytest.raises(UserError, match=REFUSED):
                load_scorer(served)
            continue
        assert reads_tokens_of(served, own), "it would be asked with texts, whose tokens may be others"
        (scored,) = load_scorer(served).score_prepared([load_scorer(served).prepare("1+2", ["3\n4"])])
        assert len(scored[0].step_rewards) == 2


def test_the_servers_own_generator_is_code_only_where_that_is_allowed(own: str) -> None:
    with pytest.raises(UserError, match=REFUSED):
        generator_options(config_of(own, trust=False, serve={"generator": "vllm"}))
    options = generator_options(config_of(own, trust=True, serve={"generator": "vllm"}))
    assert options.max_model_len == 512 and options.trust_remote_code
    body = {"messages": [{"role": "user", "content": "1+2"}], "max_tokens": 4, "seed": 0}
    reply = asyncio.run(ChatModel(options, "own", None).complete(body))
    assert isinstance(reply, dict) and len(reply["choices"]) == 1


def test_the_code_of_a_published_model_is_never_run(own: str) -> None:
    with pytest.raises(UserError, match="that of a published reward model never does"):
        load_format(own, "value_head")
