"""Models that cannot be used are refused in one line that names them; what can be used is read without loss."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from prm_ray import models
from prm_ray.config import RunConfig
from prm_ray.embeddedmodel import EMBEDDED
from prm_ray.errors import UserError
from prm_ray.fingerprints import model_fingerprint
from prm_ray.settings import Example, PromptSection
from tests.tiny import save_tiny_model


@pytest.fixture
def broken(tiny_model: str, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match=r"model 'nowhere' does not exist"):
        models.resolve_model("./nowhere")


def test_a_folder_without_a_tokenizer_is_refused(broken: Path) -> None:
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=f"model '{broken}' has no tokenizer that loads"):
        models.load_tokenizer(str(broken))


def test_a_tokenizer_without_a_chat_template_is_refused_unless_one_is_given(broken: Path, tmp_path: Path) -> None:
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template; give one as a Jinja file in prompt\.chat_template"):
        models.load_tokenizer(str(broken))
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    tokenizer = models.load_tokenizer(str(broken), template)
    assert models.decode(tokenizer, models.encode_prompt(tokenizer, [{"role": "user", "content": "1+2"}])) == "1+2"


def test_pickled_weights_are_not_read(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors weights"):
        models.load_model(str(broken))


def test_damaged_weights_are_refused_in_one_line(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="does not load"):
        models.load_model(str(broken))


def test_policy_and_reference_must_read_the_same_token_ids(
    tiny_model: str, other_tiny_model: str, tmp_path: Path
) -> None:
    models.check_vocabularies(tiny_model, other_tiny_model)
    other = save_tiny_model(tmp_path / "other", extra_token="<|more|>")
    with pytest.raises(UserError, match="have different vocabularies"):
        models.check_vocabularies(tiny_model, other)


def test_a_fingerprint_follows_weights_tokenizer_and_template_not_the_place(broken: Path, tiny_model: str) -> None:
    before = model_fingerprint(tiny_model)
    assert model_fingerprint(str(broken)) == before
    (broken / "chat_template.jinja").write_text("other")
    assert model_fingerprint(str(broken)) != before


@pytest.mark.parametrize("text", ["plain", "漢字 é🙂\n\n\ttabs", "a\U0001d4b3b", " leading and trailing \n"])
def test_decoding_gives_the_encoded_text_back_and_char_ends_cover_it(tiny_model: str, text: str) -> None:
    tokenizer = models.load_tokenizer(tiny_model)
    tokens = models.encode_response(tokenizer, text)
    assert models.decode(tokenizer, tokens) == text
    ends = models.token_char_ends(tokenizer, tokens)
    assert ends == sorted(ends)
    assert ends[-1] == len(text)


def test_messages_hold_system_examples_and_the_problem_in_order() -> None:
    prompt = PromptSection(system="s", template="Q: {problem}", examples=[Example(problem="1+1", solution="2")])
    roles = [(message["role"], message["content"]) for message in models.build_messages(prompt, "2+2")]
    assert roles == [("system", "s"), ("user", "Q: 1+1"), ("assistant", "2"), ("user", "Q: 2+2")]


def test_a_prm_finds_its_reference_after_both_have_moved(tmp_path: Path) -> None:
    old = tmp_path / "old"
    (old / "warmup").mkdir(parents=True)
    (old / "checkpoint").mkdir()
    models.write_prm_json(old / "checkpoint", {"beta": 1.0, "reference": str(old / "warmup")})
    old.rename(tmp_path / "new")
    assert models.read_prm_json(tmp_path / "new/checkpoint")["reference"] == str(tmp_path / "new/warmup")
    assert str(tmp_path) not in json.dumps((tmp_path / "new/checkpoint/prm.json").read_text())


def test_the_embedded_model_keeps_its_name_so_that_every_machine_finds_its_own_copy(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"run": {"dir": str(tmp_path)}, "model": {"name": EMBEDDED}})
    assert models.base_model(config) == models.reference_model(config) == EMBEDDED
    models.write_prm_json(tmp_path, {"reference": models.reference_model(config)})
    assert models.read_prm_json(tmp_path)["reference"] == EMBEDDED


def test_parameters_are_counted_without_the_table_that_tokens_are_looked_up_in(tiny_model: str, tmp_path: Path) -> None:
    """Tied to the output layer the table is multiplied with, and counts once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = models.load_model(tiny_model, "float32")
    table = model.get_input_embeddings().weight.numel()
    assert models.count_parameters(tiny_model) == sum(each.numel() for each in model.parameters()) - table
    tied = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(tied).save_pretrained(tmp_path)
    assert models.count_parameters(str(tmp_path)) == models.count_parameters(tiny_model)


@pytest.mark.parametrize(("is_fast", "found"), [(True, torch.bfloat16), (False, torch.float32)])
def test_by_default_a_cpu_computes_in_the_format_it_is_fast_in(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, is_fast: bool, found: torch.dtype
):
    """On a CPU without kernels for bfloat16 a step of training would take half a minute in place of a second."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_fast)
    assert models.load_model(tiny_model, device="cpu").dtype == found
    assert models.load_model(tiny_model, "bfloat16", device="cpu").dtype == torch.bfloat16
