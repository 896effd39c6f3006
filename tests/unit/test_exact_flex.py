"""The GPU's way, FlexAttention, without its compiler: block mask, capping and shared heads are the forest's rule."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prm_ray.core import attention
from prm_ray.core.attention import _flex
from prm_ray.core.forest import ForestAttention
from prm_ray.core.packing import PackedBatch, pack
from tests.exactness import alone, deep_forest, largest_difference, tiny, together

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def uncompiled(*args: Any, **kwargs: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    with torch.no_grad():  # CPU has no backward
        return flex_attention(*args, **kwargs)


def attend_by_path(batch: PackedBatch, query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Tensor:
    """Token by token over its ancestors: the last token before it at each smaller position."""
    group = query.shape[1] // key.shape[1]
    outs = []
    last_at: dict[int, int] = {}
    for token, position in enumerate(batch.position_ids_T.tolist()):
        last_at[position] = token
        path = [last_at[each] for each in range(position + 1)]
        keys, values = (each[:, :, path].repeat_interleave(group, dim=1) for each in (key, value))
        scores = (query[:, :, token, None] * keys).sum(dim=-1) * 0.3
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        outs.append((scores.softmax(dim=-1)[..., None] * values).sum(dim=2))
    return torch.stack(outs, dim=2)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("num_key_heads", [1, 2, 4])
def test_flex_attention_sees_the_path_of_each_token(
    num_key_heads: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_compiled_flex", lambda: uncompiled)
    (batch,) = pack(deep_forest(), 1 << 20)
    num_tokens = len(batch.input_ids_T)
    assert num_tokens % 128  # the last block of the mask is not full
    torch.manual_seed(0)
    query = torch.randn(1, 4, num_tokens, 16)
    key, value = torch.randn(2, 1, num_key_heads, num_tokens, 16)
    forest = ForestAttention(batch.nodes, num_tokens, query.device)
    ours = _flex(query, key, value, forest, 0.3, softcap)
    torch.testing.assert_close(ours, attend_by_path(batch, query, key, value, softcap), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_whole_model_scores_the_same_through_flex_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caps = {"attn_logit_softcapping": 2.0, "head_dim": 16} if family == "gemma2" else {}
    model, groups = tiny(family, **caps), deep_forest()
    calls = []

    def by_flex(
        query: Tensor, key: Tensor, value: Tensor, forest: ForestAttention, scale: float, cap: Any = None
    ) -> Any:
        calls.append(query.shape)
        return _flex(query, key, value, forest, scale, cap)

    monkeypatch.setattr(attention, "_compiled_flex", lambda: uncompiled)
    monkeypatch.setattr(attention, "_by_path", by_flex)
    monkeypatch.setattr(attention._Segments, "apply", by_flex)
    with torch.no_grad():
        assert largest_difference(together(model, groups), alone(model, groups)) < 1e-4
    assert len(calls) == model.config.num_hidden_layers


@pytest.mark.parametrize("token_budget", [100, 300, 1 << 20])
def test_the_block_mask_is_the_one_that_all_pairs_would_give(token_budget: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    for batch in pack([*deep_forest(0), *deep_forest(1), *deep_forest(2)], token_budget):
        num_tokens = len(batch.input_ids_T)
        forest = ForestAttention(batch.nodes, num_tokens, torch.device("cpu"))
        ours = forest.block_mask
        theirs = create_block_mask(ours.mask_mod, None, None, num_tokens, num_tokens, device="cpu")
        assert torch.equal(ours.to_dense(), theirs.to_dense())
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
        assert ours.seq_lengths == theirs.seq_lengths == (num_tokens, num_tokens)
