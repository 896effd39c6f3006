"""Memory by hand, against what torch allocates in a real step, and parameters against real models."""

import pytest

from benchmarks import planning as measured
from prm_ray.planning.activations import Batch, backward_of_layer, kept_in_layer
from prm_ray.planning.knownmodels import KNOWN
from prm_ray.planning.memory import Training, forward_memory, total, training_memory
from prm_ray.planning.shapes import Shape

TINY = Shape(8, 3, 16, 2, 1, 100, True)
"""A layer has 576 + 16 parameters, the table 800."""


def test_what_a_layer_keeps_by_hand():
    """Two norms: 8 numbers in float32, scaled, and behind the gain. Queries 8, keys 4, values 4, result 8, a float32
    log-sum-exp a head. Four times 16 numbers of the MLP."""
    assert kept_in_layer(TINY, 2) == 2 * 8 * (4 + 2 + 2) + 2 * (8 + 4 + 4 + 8) + 2 * 4 + 4 * 16 * 2
    assert kept_in_layer(TINY, 4) == 2 * 8 * (4 + 4 + 4) + 4 * (8 + 4 + 4 + 8) + 2 * 4 + 4 * 16 * 4
    assert kept_in_layer(TINY, 2, rank=1) == kept_in_layer(TINY, 2) - 2 * 8 * 2 + 7 * 2
    assert backward_of_layer(TINY, 2) == 2 * (2 * 16 + 8)


def test_what_a_step_holds_by_hand():
    """18 bytes a parameter without any token: bfloat16 weights, float32 masters, gradients, two moments."""
    nothing = Batch(0, 0)
    terms = training_memory(TINY, Training(), nothing, 2)
    gradients = 2 * 2584 + 2 * 800  # at the end of backward each has one, the tied table two
    assert total(terms) == 18 * 2584 + gradients
    half = training_memory(TINY, Training("fsdp", 2), nothing, 2)
    assert half["float32 masters"] + half["optimizer moments"] + half["float32 gradients"] == 16 * 2584 / 2
    adapter = training_memory(TINY, Training(lora_rank=2), nothing, 2)
    rank_2 = 3 * 2 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 3 * (8 + 16))
    assert total(adapter) == 2 * 2584 + 18 * rank_2 + 2 * rank_2


def test_checkpointing_keeps_the_input_of_each_layer_and_one_whole_layer():
    batch = Batch(1000, 10)
    kept = 1000 * kept_in_layer(TINY, 2)
    whole = training_memory(TINY, Training(), batch, 2)["activations"]
    checkpointed = training_memory(TINY, Training(gradient_checkpointing=True), batch, 2)["activations"]
    assert whole == 3 * kept + 1000 * 8 * 6
    assert checkpointed == 3 * 1000 * 8 * 2 + 1000 * 8 * 6 + kept


CASES = {
    "full": Training(),
    "checkpointing": Training(gradient_checkpointing=True),
    "LoRA": Training(lora_rank=8),
    "frozen embeddings": Training(freeze_embeddings=True),
    "scoring": None,
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_of_a_real_step_is_what_torch_allocates(name: str):
    """`benchmarks.planning` does the same with larger models and with FSDP."""
    import torch

    shape = Shape(64, 4, 192, 4, 2, 20_000, name != "frozen embeddings", kind="qwen3" if name == "LoRA" else "llama")
    case = measured.Case(shape, CASES[name], prompt=64, responses=2, response=160)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # attention has a buffer for each
    try:
        allocated, batch = measured.allocated_in_a_step(case)
    finally:
        torch.set_num_threads(num_threads)
    assert total(measured.planned(case, batch, on_gpu=False)) == pytest.approx(allocated, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_model(kind: str, tied: bool):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = Shape(64, 3, 96, 4, 2, 500, tied, 32, kind=kind)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 500}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "qwen2":  # its heads always share the hidden size
        shape = Shape(64, 3, 96, 4, 2, 500, tied, kind=kind)
    else:
        heads["head_dim"] = 32
    config = AutoConfig.for_model(kind, tie_word_embeddings=tied, **sizes, **heads)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("smollm2-135m-instruct", 134_515_008),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B", 70_553_706_496),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-72B", 72_706_203_648),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
    ],
)
def test_well_known_shapes_have_the_published_number_of_parameters(name: str, published: int):
    assert KNOWN[name].parameters == published


def test_scoring_needs_the_weights_and_one_layer_whatever_the_depth():
    batch = Batch(4096, 3000)
    deep, flat = (forward_memory(Shape(64, layers, 192, 4, 2, 2000, True), batch, 2) for layers in (40, 2))
    assert deep["activations of one layer"] == flat["activations of one layer"]
    assert deep["weights"] > flat["weights"]
