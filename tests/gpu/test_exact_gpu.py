"""On a GPU: the compiled FlexAttention way gives the log-probs and gradients that the CPU gives in float32."""

import copy
from typing import Any

import pytest
import torch

from prm_ray.core.attention import backend_of
from prm_ray.core.packing import PromptGroup
from prm_ray.core.support import check_model
from tests.exactness import alone, deep_forest, gradients, largest_difference, tiny, together, worst_gradient_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "qwen3": {"head_dim": 64},
    "gemma2": {"head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
}


@pytest.fixture(autouse=True)
def full_float32():
    """Products of float32 in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("token_budget", [200, 1 << 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_on_the_gpu_are_those_of_the_cpu(family: str, token_budget: int) -> None:
    on_cpu, groups = tiny(family, **FAMILIES[family]), deep_forest()
    on_gpu = copy.deepcopy(on_cpu).to("cuda")
    assert backend_of(on_gpu.device) == "flex"
    expected, ours = alone(on_cpu, groups), together(on_gpu, groups, token_budget)
    moved = {branch: values.cpu() for branch, values in ours.items()}
    assert largest_difference(moved, expected) < 1e-4
    found = [gradient.cpu() for gradient in gradients(on_gpu, ours)]
    assert worst_gradient_error(found, gradients(on_cpu, expected)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_the_gpu_passes_its_check(dtype: torch.dtype) -> None:
    check_model(tiny("llama", head_dim=16).to("cuda", dtype))


def test_bfloat16_on_the_gpu_is_as_close_to_float32_as_one_text_at_a_time() -> None:
    exact, groups = tiny("llama", head_dim=16), deep_forest()
    model = copy.deepcopy(exact).to("cuda", torch.bfloat16)
    with torch.no_grad():
        expected = alone(exact, groups)
        ours = {branch: values.cpu() for branch, values in together(model, groups).items()}
        plain = {branch: values.cpu() for branch, values in alone(model, groups).items()}
    ours_error, plain_error = (
        torch.cat([(values[branch] - expected[branch]).abs() for branch in expected]).mean() for values in (ours, plain)
    )
    assert ours_error < 1.5 * plain_error


@pytest.mark.parametrize("num_tokens", [17, 40, 100, 130])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4, 8])
def test_short_batches_compile_however_many_query_heads_share_a_key(num_tokens: int, key_value_heads: int) -> None:
    on_cpu = tiny("llama", head_dim=64, num_attention_heads=8, num_key_value_heads=key_value_heads)
    torch.compiler.reset()  # as the first batch of a process
    groups = [PromptGroup(list(range(3, 11)), [list(range(11, 15)), list(range(3, num_tokens - 9))])]
    ours = together(copy.deepcopy(on_cpu).to("cuda"), groups)
    moved = {branch: values.cpu() for branch, values in ours.items()}
    assert largest_difference(moved, alone(on_cpu, groups)) < 1e-4
