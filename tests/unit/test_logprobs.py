"""Chunked log-probs and their gradients against the plain formula."""

import pytest
import torch
from torch import Tensor

from prm_ray.core import logprobs
from prm_ray.core.logprobs import token_logprobs
from prm_ray.core.objectives import cross_entropy


def plain(hidden: Tensor, head: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = hidden @ head.T if bias is None else hidden @ head.T + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_equals_plain_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, with_bias: bool
) -> None:
    monkeypatch.setattr(logprobs, "TILE_TOKENS", 3)  # 8 tokens and 11 words: full tiles and parts
    monkeypatch.setattr(logprobs, "TILE_WORDS", 4)
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    bias = torch.randn(11, requires_grad=True) if with_bias else None
    target, weight = torch.randint(11, (8,)), torch.randn(8)
    inputs = [tensor for tensor in (hidden, head, bias) if tensor is not None]
    expected = plain(hidden, head, target, bias, softcap)
    ours = token_logprobs(hidden, head, target, bias, softcap)
    torch.testing.assert_close(ours, expected)
    grads = torch.autograd.grad((ours * weight).sum(), inputs)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * weight).sum(), inputs))


def test_log_probs_of_bfloat16_inputs_are_float32_and_close_to_exact() -> None:
    torch.manual_seed(0)
    hidden, head, target = torch.randn(20, 16), torch.randn(50, 16), torch.randint(50, (20,))
    ours = token_logprobs(hidden.bfloat16(), head.bfloat16(), target)
    assert ours.dtype == torch.float32
    assert (ours - plain(hidden, head, target, None, None)).abs().max() < 0.1


def test_cross_entropy_by_hand() -> None:
    """beta 0.5, log-ratios 2 (right) and 4 (wrong): rewards 1 and 2; log(1 + e^-1) + log(1 + e^2) = 0.3133 + 2.1269."""
    loss = cross_entropy(torch.tensor([2.0, 4.0]), torch.tensor([True, False]), beta=0.5)
    assert loss.item() == pytest.approx(2.4402, abs=1e-4)


def test_cross_entropy_keeps_its_slope_where_sigmoid_saturates() -> None:
    log_ratio = torch.tensor([500.0], requires_grad=True)
    cross_entropy(log_ratio, torch.tensor([False]), beta=1.0).backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.item() == 1.0


def test_a_frozen_head_gives_the_same_gradient_of_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "TILE_TOKENS", 3)
    monkeypatch.setattr(logprobs, "TILE_WORDS", 4)
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 5, requires_grad=True), torch.randn(11, 5)
    target, weight = torch.randint(11, (8,)), torch.randn(8)
    (ours,) = torch.autograd.grad((token_logprobs(hidden, head, target) * weight).sum(), hidden)
    (expected,) = torch.autograd.grad((plain(hidden, head, target, None, None) * weight).sum(), hidden)
    torch.testing.assert_close(ours, expected)
