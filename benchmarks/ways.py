"""The ways to get the log-probs of candidates: ours, and how others do it. Each gives a tensor a response, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prm_ray.core.forward import response_logprobs
from prm_ray.core.packing import PromptGroup, pack, unpack

Row = tuple[Sequence[int], Sequence[int]]
"""A prompt and one response to it."""


def packed(model: Any, groups: Sequence[PromptGroup], token_budget: int) -> list[Tensor]:
    """Ours: forests of shared prefixes, the vocabulary at response positions only, in chunks."""
    found: dict[tuple[int, int], Tensor] = {}
    for batch in pack(groups, token_budget):
        found |= dict(unpack(response_logprobs(model, batch).cpu(), batch))
    return [found[key] for key in sorted(found)]


def padded(model: Any, groups: Sequence[PromptGroup], batch: int) -> list[Tensor]:
    """The paper's code: `batch` rows at a time in the order they come, see `padded_batch`."""
    rows = rows_of(groups)
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return [values for each in batches for values in padded_batch(model, each)]


def padded_batch(model: Any, rows: Sequence[Row]) -> list[Tensor]:
    """Prompt and response of each row, padded on the right; logits and log-softmax of every position, as they come."""
    texts = [[*prompt, *response] for prompt, response in rows]
    length = max(map(len, texts))
    ids_BT = torch.tensor([text + [0] * (length - len(text)) for text in texts], device=model.device)
    mask_BT = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts], device=model.device)
    logits_BTV = model(ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
    picked_BT = logits_BTV.log_softmax(dim=-1).gather(2, ids_BT[:, 1:, None]).squeeze(2).float()
    starts = [len(prompt) - 1 for prompt, _ in rows]
    return [
        picked_BT[row, start : start + len(response)]
        for row, (start, (_, response)) in enumerate(zip(starts, rows, strict=True))
    ]


def one_by_one(model: Any, groups: Sequence[PromptGroup]) -> list[Tensor]:
    """The plain loop of trainers on transformers: a response at a time, logits of its own positions only."""
    found = []
    for prompt, response in rows_of(groups):
        ids_T = torch.tensor([*prompt, *response], device=model.device)
        logits_RV = model(ids_T[None], use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
        target_R = ids_T[len(prompt) :]
        found.append(logits_RV.log_softmax(dim=-1).gather(1, target_R[:, None]).squeeze(1).float())
    return found


def rows_of(groups: Sequence[PromptGroup]) -> list[Row]:
    return [(group.prompt, response) for group in groups for response in group.responses]
