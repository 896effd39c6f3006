"""Every supported family: packed log-probs and gradients are those of plain transformers; others are refused."""

from typing import Any

import pytest
import torch

from prm_ray.core import forest as forest_module
from prm_ray.core.forest import ForestAttention
from prm_ray.core.packing import pack
from prm_ray.core.support import check_model
from tests.exactness import alone, deep_forest, gradients, largest_difference, tiny, together, worst_gradient_error

MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
MLA = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "num_key_value_heads": 4}
DEEPSEEK = {**MOE, **MLA, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
TWO_KINDS = {"num_hidden_layers": 7, "head_dim": 8}  # every sixth layer of Gemma 3 sees all, with its own rope base
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied_head": ("llama", {"tie_word_embeddings": True}),
    "llama_bias_one_head_each": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama_one_key_head": ("llama", {"num_key_value_heads": 1}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window_not_in_use": ("qwen2", {"sliding_window": 10, "use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral_window_longer_than_texts": ("mistral", {"sliding_window": 200}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {"head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("gemma3_text", TWO_KINDS),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 200}),
    "smollm3_layers_without_rope": ("smollm3", {"no_rope_layers": [1, 0]}),
    "starcoder2_biased_norms": ("starcoder2", {}),
    "gpt_neox_partial_rope": ("gpt_neox", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "num_experts": 4, "head_dim": 8}),
    "deepseek_v3_equal_head_sizes": ("deepseek_v3", {**DEEPSEEK, "v_head_dim": 16}),
    "cohere_scaled_logits": ("cohere", {"logit_scale": 0.3}),
    "granite_scaled_everywhere": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.4}),
}
OWN_WAY = {"block_types": ["recurrent", "attention"], "attention_window_size": 64, "lru_width": 32}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 1}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("mamba", {}, "does not let its attention be exchanged"),
    "bloom_alibi": ("bloom", {"n_head": 4}, "does not let its attention be exchanged"),
    "jamba": ("jamba", {}, "does not let its attention be exchanged"),
    "falcon_h1": ("falcon_h1", MAMBA, "does not let its attention be exchanged"),
    "qwen3_next": ("qwen3_next", {**MOE, "num_experts": 4}, "does not let its attention be exchanged"),
    "lfm2_convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers ['conv']"),
    "recurrent_gemma": ("recurrent_gemma", OWN_WAY, "layers ['recurrent']"),
    "gpt_oss_sinks": ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, "sinks"),
    "deepseek_v3_other_value_size": ("deepseek_v3", {**DEEPSEEK, "v_head_dim": 8}, "values of another size"),
    "nemotron_drops_arguments": ("nemotron", {"head_dim": 8}, "an example differ"),
    "bert_sees_both_sides": ("bert", {}, "an example differ"),
    "modernbert_head_of_layers": ("modernbert-decoder", {}, "an example differ"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probs_and_gradients_are_those_of_one_text_at_a_time(family: str) -> None:
    kind, changes = FAMILIES[family]
    model, groups = tiny(kind, **changes), deep_forest()
    check_model(model)
    expected, ours = alone(model, groups), together(model, groups)
    assert largest_difference(ours, expected) < 1e-4
    assert worst_gradient_error(gradients(model, ours), gradients(model, expected)) < 1e-4


@pytest.mark.parametrize("block", [1, 20, 64, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_size_of_blocks_changes_nothing(family: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest_module, "BLOCK", block)
    kind, changes = FAMILIES[family]
    model, groups = tiny(kind, **changes), deep_forest()
    expected, ours = alone(model, groups), together(model, groups)
    assert largest_difference(ours, expected) < 1e-4
    assert worst_gradient_error(gradients(model, ours), gradients(model, expected)) < 1e-4


def test_the_forest_of_these_tests_goes_every_way_through_the_attention() -> None:
    """Large nodes on four levels, blocks of small trees, some below large nodes and some not; at the default size."""
    (batch,) = pack(deep_forest(), 1 << 20)
    segments = ForestAttention(batch.nodes, len(batch.input_ids_T), torch.device("cpu")).segments
    large = [each for each in segments if not each.is_block and each.end - each.start > forest_module.BLOCK]
    assert max(each.depth for each in large) >= 3
    assert any(each.is_block and each.depth for each in segments)


def test_a_gemma_3_with_images_scores_text() -> None:
    from transformers import AutoModelForCausalLM, Gemma3Config

    from tests.exactness import SIZES

    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={**SIZES, **TWO_KINDS}, vision_config={**VISION, "image_size": 28, "patch_size": 14}, **IMAGES
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    check_model(model)
    expected, ours = alone(model, deep_forest()), together(model, deep_forest())
    assert largest_difference(ours, expected) < 1e-4


@pytest.mark.parametrize("case", REFUSED)
def test_a_family_that_cannot_be_exact_is_refused_in_one_line(case: str) -> None:
    kind, changes, reason = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        check_model(tiny(kind, **changes))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_a_text_longer_than_the_sliding_window_is_refused(family: str) -> None:
    model = tiny(family, sliding_window=40, head_dim=8)
    check_model(model)
    with pytest.raises(ValueError, match=r"of \d+ tokens is longer than the model's sliding window of 40"):
        together(model, deep_forest())


@pytest.mark.parametrize("layers", [None, "full_attention"])  # one rope for all layers, or one a kind of layer
def test_a_rope_that_grows_with_the_longest_text_is_refused_beyond_its_limit(layers: str | None) -> None:
    rope: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    kinds = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, layers: rope}
    kind, ropes = ("llama", rope) if layers is None else ("gemma3_text", kinds)
    model = tiny(kind, rope_parameters=ropes, max_position_embeddings=40)
    with pytest.raises(ValueError, match="longer than the model's limit of 40, where its rotary embedding"):
        together(model, deep_forest())


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear"])
def test_a_stretched_rope_is_exact(kind: str) -> None:
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    reach = {} if kind == "linear" else {"original_max_position_embeddings": 32}
    model = tiny("llama", rope_parameters={"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, **bands, **reach})
    groups = deep_forest()
    assert largest_difference(together(model, groups), alone(model, groups)) < 1e-4
