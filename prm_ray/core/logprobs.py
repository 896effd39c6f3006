"""Log-probs of given tokens from hidden states, tile by tile: the `tokens x vocabulary` matrix never exists.

A tile is a few hundred tokens times some thousand words; each is reduced to one log-sum-exp a token as soon as it is
there. Backward computes the tiles anew, or not at all where the output layer is frozen. The logit of the wanted token
itself is a float32 dot product: in bfloat16 its rounding (0.03 at a logit of 10) would be most of a log-prob's error.

Letters: R tokens, D hidden size, V vocabulary; C tokens and W words of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE_TOKENS = 512
TILE_WORDS = 8192
"""512 x 8192 in float32 is 16 MB: it stays in a CPU's cache, and below the size that malloc gets anew from the system.
On a GPU a tile holds `_GPU_FACTOR` times the tokens."""
_GPU_FACTOR = 8


def token_logprobs(
    hidden_RD: Tensor, head_VD: Tensor, target_R: Tensor, bias_V: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """log softmax(hidden @ head.T + bias)[target], float32 [R]; differentiable in hidden, head and bias.

    `softcap` c replaces logits z by c * tanh(z / c) (Gemma 2). Products run in the dtype of the inputs, everything
    behind them in float32.
    """
    return _TokenLogprobs.apply(hidden_RD, head_VD, bias_V, target_R, softcap)  # pyright: ignore


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _token_parts(hidden_RD: Tensor) -> Iterator[slice]:
    return _parts(len(hidden_RD), TILE_TOKENS * (_GPU_FACTOR if hidden_RD.is_cuda else 1))


class _Head:
    """The output layer: logits, by tiles."""

    def __init__(self, head_VD: Tensor, bias_V: Tensor | None, softcap: float | None):
        self.weight_VD, self.bias_V, self.softcap = head_VD, bias_V, softcap

    def target_logits(self, hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        """The wanted tokens' own logits, float32 [C]."""
        logits_C = (hidden_CD.float() * self.weight_VD[target_C].float()).sum(dim=1)
        return self._bend(logits_C if self.bias_V is None else logits_C + self.bias_V[target_C].float())

    def tiles(self, hidden_CD: Tensor, target_C: Tensor, own_C: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(words, their float32 logits [C, W]) over the vocabulary, with `own_C` as the wanted tokens' logits."""
        for words in _parts(len(self.weight_VD), TILE_WORDS):
            logits_CW = (hidden_CD @ self.weight_VD[words].T).float()
            if self.bias_V is not None:
                logits_CW += self.bias_V[words].float()
            logits_CW = self._bend(logits_CW)
            rows = _rows_in(target_C, words)
            logits_CW[rows, target_C[rows] - words.start] = own_C[rows]
            yield words, logits_CW

    def _bend(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _rows_in(target_C: Tensor, words: slice) -> Tensor:
    """Rows whose wanted token is one of these words."""
    return ((target_C >= words.start) & (target_C < words.stop)).nonzero().squeeze(1)


def _normalizer(tiles: Iterator[tuple[slice, Tensor]]) -> Tensor:
    """log sum exp over the vocabulary, [C]. One fused pass a tile: any column of a log-softmax tells its sum."""
    return torch.stack([logits[:, 0] - logits.log_softmax(dim=1)[:, 0] for _, logits in tiles]).logsumexp(dim=0)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, head_VD: Tensor, bias_V: Tensor | None, target_R: Tensor, softcap: float | None
    ) -> Tensor:
        head = _Head(head_VD, bias_V, softcap)
        normalizer_R = torch.empty(len(target_R), dtype=torch.float32, device=hidden_RD.device)
        own_R = torch.empty_like(normalizer_R)
        # With a frozen head the gradient of hidden is known up to one factor a token: no logits again in backward.
        is_linear = softcap is None and not ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]
        slope_RD = torch.empty_like(hidden_RD) if is_linear and ctx.needs_input_grad[0] else None
        for rows in _token_parts(hidden_RD):
            hidden_CD, target_C = hidden_RD[rows], target_R[rows]
            own_R[rows] = head.target_logits(hidden_CD, target_C)
            tiles = head.tiles(hidden_CD, target_C, own_R[rows])
            if slope_RD is None:
                normalizer_R[rows] = _normalizer(tiles)
            else:
                normalizer_R[rows], mean_CD = _mean_word(tiles, head_VD)
                slope_RD[rows] = (head_VD[target_C].float() - mean_CD).to(slope_RD.dtype)
        ctx.save_for_backward(hidden_RD, head_VD, bias_V, target_R, own_R, normalizer_R, slope_RD)
        ctx.softcap = softcap
        return own_R - normalizer_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """d logprob / d logits = onehot(target) - softmax; the chain through head and hidden, tile by tile."""
        (grad_R,) = grad_outputs
        hidden_RD, head_VD, bias_V, target_R, own_R, normalizer_R, slope_RD = ctx.saved_tensors
        if slope_RD is not None:
            return slope_RD * grad_R[:, None].to(slope_RD.dtype), None, None, None, None
        head = _Head(head_VD, bias_V, ctx.softcap)
        grad_hidden_RD = torch.zeros(hidden_RD.shape, dtype=torch.float32, device=hidden_RD.device)
        grad_head_VD = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
        for rows in _token_parts(hidden_RD):
            target_C = target_R[rows]
            for words, logits_CW in head.tiles(hidden_RD[rows], target_C, own_R[rows]):
                grad_CW = _grad_logits(logits_CW, words, target_C, normalizer_R[rows], grad_R[rows], ctx.softcap)
                if grad_bias_V is not None:
                    grad_bias_V[words] += grad_CW.sum(dim=0).to(grad_bias_V.dtype)
                grad_CW = grad_CW.to(head_VD.dtype)
                grad_hidden_RD[rows] += grad_CW @ head_VD[words]
                if grad_head_VD is not None:
                    grad_head_VD[words].addmm_(grad_CW.T, hidden_RD[rows])
        return grad_hidden_RD.to(hidden_RD.dtype), grad_head_VD, grad_bias_V, None, None


def _mean_word(tiles: Iterator[tuple[slice, Tensor]], head_VD: Tensor) -> tuple[Tensor, Tensor]:
    """log sum exp [C] and the head's rows averaged by their probabilities, float32 [C, D], from one pass of tiles."""
    sums, means = [], []
    for words, logits_CW in tiles:
        logprobs_CW = logits_CW.log_softmax(dim=1)
        sums.append(logits_CW[:, 0] - logprobs_CW[:, 0])
        means.append(logprobs_CW.exp_().to(head_VD.dtype) @ head_VD[words])
    normalizer_C = torch.stack(sums).logsumexp(dim=0)
    mean_CD = torch.zeros(means[0].shape, dtype=torch.float32, device=head_VD.device)
    for sum_C, part_CD in zip(sums, means, strict=True):
        mean_CD.addcmul_((sum_C - normalizer_C).exp()[:, None], part_CD.float())
    return normalizer_C, mean_CD


def _grad_logits(
    logits_CW: Tensor, words: slice, target_C: Tensor, normalizer_C: Tensor, grad_C: Tensor, softcap: float | None
) -> Tensor:
    """Gradient of a tile's logits before they were capped, [C, W]."""
    bend_CW = None if softcap is None else 1 - (logits_CW / softcap) ** 2
    grad_CW = logits_CW.sub_(normalizer_C[:, None]).exp_().mul_(-grad_C[:, None])
    rows = _rows_in(target_C, words)
    grad_CW[rows, target_C[rows] - words.start] += grad_C[rows]
    return grad_CW if bend_CW is None else grad_CW * bend_CW
