"""Attention over a forest: exact, without a `tokens x tokens` mask, in a transformers model of any common family.

Two ways, chosen by where the model is (`backend_of`):

  segments  CPU. Each node of the forest is one call of a fused kernel: queries = its whole subtree, keys = its own
            tokens, causal. A query below d nodes gets d partial results, put together by their log-sum-exps; small
            subtrees are one call with a mask. Backward gives the kernel the merged output and log-sum-exp: then every
            partial gradient is exact, as in a flash kernel that walks over key blocks.
  flex      GPU. FlexAttention with a block mask; a key's queries are a range, so the rule is two comparisons.

`forest.py` says who sees whom.

Letters: B rows, H heads, K key-value heads, T tokens, D head size, C cached tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from prm_ray.core.forest import ForestAttention
from prm_ray.core.packing import Node

NAME = "prm_ray_forest"
"""What transformers calls this attention, see `use_forest_attention`."""


def backend_of(device: torch.device | str) -> str:
    """`flex` on a GPU, `segments` elsewhere."""
    return "flex" if torch.device(device).type == "cuda" else "segments"


def use_forest_attention(model: Any) -> None:
    """Make a transformers model attend over a forest where it is given one, and else as SDPA does, e.g. to generate."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != NAME:
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def _attend(
    module: Any,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    *,
    forest: ForestAttention | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """What a transformers attention layer calls; returns [B, T, H, D]."""
    if forest is None:
        return _ordinary(module, query_BHTD, key_BKTD, value_BKTD, attention_mask, scaling, dropout, **kwargs)
    if s_aux is not None or key_BKTD.shape[-1] != value_BKTD.shape[-1]:
        raise ValueError("attention with sinks, or with values of another size than keys, is not supported")
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if forest.past is not None:
        key_BKTD, value_BKTD = forest.past.extend(module.layer_idx, key_BKTD, value_BKTD)
    if forest.device.type == "cuda":
        out_BHTD = _flex(query_BHTD, key_BKTD, value_BKTD, forest, scale, softcap)
    elif softcap is None:
        out_BHTD = cast(Tensor, _Segments.apply(query_BHTD, key_BKTD, value_BKTD, forest, scale))  # pyright: ignore
    else:
        out_BHTD = _by_path(query_BHTD, key_BKTD, value_BKTD, forest, scale, softcap)
    return out_BHTD.transpose(1, 2), None


def _ordinary(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask, scaling, dropout = args
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, forest: ForestAttention, scale: float) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        lse = torch.empty(query.shape[:3], dtype=torch.float32)
        own = (query, key[:, :, forest.num_past :], value[:, :, forest.num_past :])
        for run in forest.runs:
            calls = [_Call(each.queries, each.keys, forest.mask(each, query.dtype)) for each in run]
            part, part_lse = _attend_run(own, calls, scale, is_causal=True)
            queries = slice(run[0].start, run[-1].end)
            if run[0].depth == 0:
                out[:, :, queries], lse[:, :, queries] = part, part_lse
            else:
                _merge(out[:, :, queries], lse[:, :, queries], part, part_lse)
        if (past := forest.past) is not None:
            for past_run in past.runs:
                calls = [_Call(each.queries, each.keys, past.mask(each, query.dtype)) for each in past_run]
                part, part_lse = _attend_run((query, key, value), calls, scale, is_causal=False)
                queries = slice(past_run[0].first, past_run[-1].last)
                _merge(out[:, :, queries], lse[:, :, queries], part, part_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.forest, ctx.scale = forest, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        *states, lse = ctx.saved_tensors
        # In float32 whatever the model's dtype: for small subtrees the kernel is three times as fast as in bfloat16.
        query, key, value, out, grad_out = (each.float() for each in (*states, grad_outputs[0]))
        grad_query, grad_key, grad_value = torch.zeros_like(query), torch.empty_like(key), torch.empty_like(value)
        for segment in ctx.forest.segments:
            queries, keys = segment.queries, segment.keys
            part, grad_key[:, :, keys], grad_value[:, :, keys] = kernel(
                grad_out[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                out[:, :, queries],
                lse[:, :, queries],
                0.0,
                not segment.is_block,
                attn_mask=ctx.forest.mask(segment, torch.float32),
                scale=ctx.scale,
            )
            grad_query[:, :, queries] += part
        dtype = states[0].dtype
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype), None, None


class _Call(NamedTuple):
    """Queries that see keys: as the mask says, or else causally or all, as the run's caller says."""

    queries: slice
    keys: slice
    mask: Tensor | None


def _attend_run(
    states: tuple[Tensor, Tensor, Tensor], calls: list[_Call], scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of calls whose queries follow one another."""
    query, key, value = states
    parts = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, call.queries],
            key[:, :, call.keys],
            value[:, :, call.keys],
            is_causal=is_causal and call.mask is None,
            attn_mask=call.mask,
            scale=scale,
        )
        for call in calls
    ]
    if len(parts) == 1:
        return parts[0]
    outs_BTHD, lses_BHT = zip(*((out.transpose(1, 2), lse) for out, lse in parts), strict=True)  # as they lie in memory
    return torch.cat(outs_BTHD, dim=1).transpose(1, 2), torch.cat(lses_BHT, dim=2)


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Attention over the keys of both, in place: the mean of the outputs weighted by exp(lse)."""
    weight = torch.sigmoid(part_lse - lse).to(out.dtype).unsqueeze(-1)
    out.lerp_(part, weight)
    torch.logaddexp(lse, part_lse, out=lse)


def _by_path(query: Tensor, key: Tensor, value: Tensor, forest: ForestAttention, scale: float, cap: float) -> Tensor:
    """Plain operations, a softmax a node over its path: for scores that the fused kernel cannot cap (Gemma 2)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outs: list[Tensor] = []
    path: list[Node] = []
    for node in forest.nodes:
        while path and path[-1].end <= node.start:
            path.pop()
        path.append(node)
        keys = torch.cat([torch.arange(each.start, each.stop, device=query.device) for each in path]) + forest.num_past
        if forest.past is not None:
            keys = torch.cat([forest.past.above(node.start), keys])
        queries = torch.arange(node.start, node.stop, device=query.device) + forest.num_past
        scores = (query[:, :, node.start : node.stop] @ key[:, :, keys].transpose(2, 3)).float() * scale
        scores = (cap * torch.tanh(scores / cap)).masked_fill(keys > queries[:, None], -torch.inf)
        outs.append(scores.softmax(dim=-1).to(value.dtype) @ value[:, :, keys])
    return torch.cat(outs, dim=2)


_KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}
"""Never the kernel for decoding, which torch takes below 128 tokens: where 2, 4 or 8 heads of the query share a key it
compiles for few of those lengths alone (torch 2.13: tokens times heads must fit into a block of the mask)."""


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, forest: ForestAttention, scale: float, softcap: float | None
) -> Tensor:
    cap = torch.full((), softcap or 0.0, device=query.device)  # a float would become a symbol that does not compile

    def capped(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return _compiled_flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=forest.block_mask,
        scale=scale,
        enable_gqa=True,
        kernel_options=_KERNEL,
    )
