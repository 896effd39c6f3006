"""Log-probs of given tokens from hidden states, in chunks: the `tokens x vocabulary` matrix never exists.

Forward keeps one float a token; backward computes each chunk's logits anew. Letters: R tokens, D hidden size, V
vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Tokens whose logits exist at once: 512 x 152k in float32 is 0.3 GB."""


def token_logprobs(
    hidden_RD: Tensor, head_VD: Tensor, target_R: Tensor, bias_V: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """log softmax(hidden @ head.T + bias)[target], float32 [R]; differentiable in hidden, head and bias.

    `softcap` c replaces logits z by c * tanh(z / c) (Gemma 2). Products run in the dtype of the inputs, everything
    behind them in float32.
    """
    return _TokenLogprobs.apply(hidden_RD, head_VD, bias_V, target_R, softcap)  # pyright: ignore


def _logits_CV(hidden_CD: Tensor, head_VD: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    logits_CV = (hidden_CD @ head_VD.T).float()
    if bias_V is not None:
        logits_CV = logits_CV + bias_V.float()
    return logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, head_VD: Tensor, bias_V: Tensor | None, target_R: Tensor, softcap: float | None
    ) -> Tensor:
        normalizer_R = torch.empty(len(target_R), dtype=torch.float32, device=hidden_RD.device)
        logprobs_R = torch.empty_like(normalizer_R)
        # With a frozen head the gradient of hidden is known up to one factor a token: no logits again in backward.
        is_linear = softcap is None and not ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]
        slope_RD = torch.empty_like(hidden_RD) if is_linear and ctx.needs_input_grad[0] else None
        for start in range(0, len(target_R), CHUNK):
            rows = slice(start, start + CHUNK)
            logits_CV = _logits_CV(hidden_RD[rows], head_VD, bias_V, softcap)
            normalizer_R[rows] = logits_CV.logsumexp(dim=1)
            picked_C = logits_CV.gather(1, target_R[rows, None]).squeeze(1)
            logprobs_R[rows] = picked_C - normalizer_R[rows]
            if slope_RD is not None:
                probs_CV = logits_CV.sub_(normalizer_R[rows, None]).exp_().to(head_VD.dtype)
                slope_RD[rows] = head_VD[target_R[rows]] - probs_CV @ head_VD
        ctx.save_for_backward(hidden_RD, head_VD, bias_V, target_R, normalizer_R, slope_RD)
        ctx.softcap = softcap
        return logprobs_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """d logprob / d logits = onehot(target) - softmax; the chain through head and hidden, chunk by chunk."""
        (grad_R,) = grad_outputs
        hidden_RD, head_VD, bias_V, target_R, normalizer_R, slope_RD = ctx.saved_tensors
        if slope_RD is not None:
            return slope_RD * grad_R[:, None].to(slope_RD.dtype), None, None, None, None
        needs_head, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grad_hidden_RD = torch.empty_like(hidden_RD)
        grad_head_VD = torch.zeros_like(head_VD) if needs_head else None
        grad_bias_V = torch.zeros_like(bias_V) if needs_bias else None
        for start in range(0, len(target_R), CHUNK):
            rows = slice(start, start + CHUNK)
            logits_CV = _logits_CV(hidden_RD[rows], head_VD, bias_V, ctx.softcap)
            bend_CV = 1 - (logits_CV / ctx.softcap) ** 2 if ctx.softcap is not None else None
            grad_CV = logits_CV.sub_(normalizer_R[rows, None]).exp_().mul_(-grad_R[rows, None])
            grad_CV.scatter_add_(1, target_R[rows, None], grad_R[rows, None])
            if bend_CV is not None:
                grad_CV = grad_CV * bend_CV
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0).to(grad_bias_V.dtype)
            grad_CV = grad_CV.to(head_VD.dtype)
            grad_hidden_RD[rows] = grad_CV @ head_VD
            if grad_head_VD is not None:
                grad_head_VD.addmm_(grad_CV.T, hidden_RD[rows])
        return grad_hidden_RD, grad_head_VD, grad_bias_V, None, None
