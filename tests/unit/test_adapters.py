"""Adapters: the base under them is the reference; one model and one pass score both."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from prm_ray import models
from prm_ray.adapters import AdapterSettings, add_adapter, check_adapter, save_weights
from prm_ray.config import RunConfig, load_config
from prm_ray.core.forward import policy_and_reference_logprobs, response_logprobs
from prm_ray.core.packing import PromptGroup, pack
from prm_ray.errors import UserError
from prm_ray.fingerprints import model_fingerprint
from prm_ray.scorer import Scorer

GROUPS = [PromptGroup([5, 6, 7], [[8, 9, 4], [8, 10], [11]]), PromptGroup([5, 6], [[8] * 9, [12, 4]])]
RESPONSES = ["1+2=3\n3+4=7\n\n", "1+2=4"]


def write_adapter(folder: Path, base: str, targets: tuple[str, ...] = ()) -> str:
    """An adapter that changes the model: its second factor starts at 0, so it is filled with noise here."""
    model = add_adapter(models.load_model(base, "float32"), AdapterSettings(2, 8.0, targets), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    save_weights(model, folder, None, torch.float32)
    models.load_tokenizer(base).save_pretrained(folder)
    models.write_prm_json(folder, {"beta": 0.5, "reference": base, "base": base, "step_rule": "newline"})
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "adapter", tiny_model)


def test_one_pass_gives_what_two_models_give(adapter: str, tiny_model: str) -> None:
    model, base = models.load_model(adapter, "float32"), models.load_model(tiny_model, "float32")
    for batch in pack(GROUPS, 12):
        policy_R, reference_R = policy_and_reference_logprobs(model, batch)
        torch.testing.assert_close(policy_R, response_logprobs(model, batch), atol=1e-5, rtol=0)
        torch.testing.assert_close(reference_R, response_logprobs(base, batch), atol=1e-5, rtol=0)
        assert (policy_R - reference_R).abs().max() > 0.1


def test_one_pass_runs_the_model_once(adapter: str) -> None:
    model, calls = models.load_model(adapter, "float32"), []
    model.get_base_model().base_model.register_forward_hook(lambda *_: calls.append(1))
    (batch,) = pack(GROUPS, 100)
    policy_and_reference_logprobs(model, batch)
    assert len(calls) == 1


def test_a_scorer_of_an_adapter_holds_one_model_and_rewards_as_with_two(adapter: str, tiny_model: str) -> None:
    one = Scorer.from_pretrained(adapter, dtype="float32")
    assert one.reference is one.policy
    policy, base = (models.load_model(name, "float32") for name in (adapter, tiny_model))
    two = Scorer(policy, base, models.load_tokenizer(tiny_model), beta=0.5, step_rule="newline")
    for ours, theirs in zip(one.score("1+2+4", RESPONSES), two.score("1+2+4", RESPONSES), strict=True):
        assert ours.token_rewards == pytest.approx(theirs.token_rewards, abs=1e-5)
        assert ours.rewards["sum"] != 0.0


def test_a_reference_that_is_not_the_base_is_a_second_model(adapter: str, other_tiny_model: str) -> None:
    scorer = Scorer.from_pretrained(adapter, other_tiny_model, dtype="float32")
    assert scorer.reference is not scorer.policy


def test_an_adapter_finds_its_base_after_both_have_moved(tiny_model: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "old/warmup")
    write_adapter(tmp_path / "old/checkpoint", str(tmp_path / "old/warmup"))
    (tmp_path / "old").rename(tmp_path / "new")
    scorer = Scorer.from_pretrained(tmp_path / "new/checkpoint", dtype="float32")
    assert scorer.score("1+2", RESPONSES)[0].rewards["sum"] != 0.0


def test_an_adapter_of_peft_itself_loads_without_prm_json(adapter: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "plain"))
    (folder / "prm.json").unlink()
    (batch,) = pack(GROUPS, 100)
    ours, theirs = (response_logprobs(models.load_model(str(name), "float32"), batch) for name in (folder, adapter))
    assert torch.equal(ours, theirs)


def test_a_fingerprint_follows_the_adapter_and_its_base_not_the_place(tiny_model: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "old/base"))
    write_adapter(tmp_path / "old/adapter", str(base))
    before = model_fingerprint(str(tmp_path / "old/adapter"))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert model_fingerprint(str(tmp_path / "new/adapter")) == before
    for file in ("base/model.safetensors", "adapter/adapter_model.safetensors"):
        folder = shutil.copytree(tmp_path / "old", tmp_path / file.replace("/", "-"))
        weights = (folder / file).read_bytes()
        (folder / file).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        assert model_fingerprint(str(folder / "adapter")) != before


def test_the_context_of_an_adapter_is_that_of_its_base(adapter: str) -> None:
    assert models.context_length(adapter) == 512


def test_an_adapter_whose_base_is_gone_is_named(adapter: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    models.write_prm_json(folder, {"beta": 1.0, "reference": "/gone", "base": "/gone"})
    with pytest.raises(UserError, match=rf"adapter folder '{folder}' lies over a base .*'/gone' does not exist"):
        models.load_model(str(folder))


def test_an_adapter_that_does_not_fit_its_base_is_refused_in_one_line(adapter: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    with pytest.raises(UserError, match="does not fit its base model"):
        models.load_model(str(folder))


def test_an_adapter_folder_is_no_model_to_start_from(adapter: str) -> None:
    with pytest.raises(UserError, match=r"model\.name .* is an adapter folder; it must be a whole model"):
        models.base_model(RunConfig.model_validate({"model": {"name": adapter}}))


@pytest.mark.parametrize("target", ["q_proj_", "lm_head", "embed_tokens", "proj"])
def test_a_target_that_is_no_inner_linear_layer_is_named_before_weights_are_read(tiny_model: str, target: str) -> None:
    with pytest.raises(
        UserError, match=rf"lora_targets '{target}' must be a linear layer .*: down_proj, gate_proj, k_"
    ):
        check_adapter(tiny_model, AdapterSettings(2, 4.0, ("v_proj", target)))
    check_adapter(tiny_model, AdapterSettings(2, 4.0, ("v_proj", "self_attn.q_proj")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train.lora_rank=4", "train.freeze_embeddings=true"], "freeze_embeddings and norm_lr must be left out"),
        (["train.lora_rank=4", "train.norm_lr=0.1"], "freeze_embeddings and norm_lr must be left out"),
        (["train.lora_alpha=8"], "need a lora_rank of at least 1"),
        (["train.parallel='tp'"], "train.parallel: Input should be 'ddp' or 'fsdp'"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(values: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "run.toml", values)
