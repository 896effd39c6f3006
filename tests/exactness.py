"""What the tests of exactness share: tiny models of any family, a deep forest, scoring one text at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prm_ray.core.forward import response_logprobs
from prm_ray.core.packing import PromptGroup, pack, unpack

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Values = dict[tuple[int, int], Tensor]


def tiny(kind: str, **changes: Any) -> Any:
    """A random model of a transformers model type; gains and biases are random too, so that each of them counts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def words(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.randrange(3, VOCABULARY) for _ in range(num_tokens)]


def deep_forest(seed: int = 0) -> list[PromptGroup]:
    """Three prompts that share a start; one has candidates that share two steps, a double, a prefix, an empty one."""
    rng = random.Random(seed)
    start = words(rng, 9)
    step = words(rng, 17)
    other = step + words(rng, 12)
    candidates = [step, other, *(step + words(rng, n) for n in (50, 31, 1)), *(other + words(rng, n) for n in (54, 70))]
    bushy = PromptGroup(start + words(rng, 40), [*candidates, candidates[2], [], words(rng, 1), words(rng, 33)])
    plain = PromptGroup(start + words(rng, 5), [words(rng, 20), words(rng, 8)])
    return [bushy, plain, PromptGroup(words(rng, 150), [words(rng, 7), words(rng, 11)])]


def alone(model: Any, groups: Sequence[PromptGroup]) -> Values:
    """Log-probs by the plain transformers model, one text at a time, whole logits."""
    model.set_attn_implementation("eager")
    found: Values = {}
    for number, group in enumerate(groups):
        for index, response in enumerate(group.responses):
            ids = torch.tensor([[*group.prompt, *response]], device=model.device)
            table = model(ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].float().log_softmax(dim=1)
            found[number, index] = table.gather(1, ids[0, len(group.prompt) :, None]).squeeze(1)
    return found


def together(model: Any, groups: Sequence[PromptGroup], token_budget: int = 1 << 20) -> Values:
    """Log-probs by the engine."""
    return {
        branch: values
        for batch in pack(groups, token_budget)
        for branch, values in unpack(response_logprobs(model, batch), batch)
    }


def largest_difference(ours: Values, expected: Values) -> float:
    assert ours.keys() == expected.keys()
    assert [len(ours[branch]) for branch in expected] == [len(values) for values in expected.values()]
    differences = [(ours[branch] - expected[branch]).abs() for branch in expected]
    return torch.cat(differences).max().item()


def gradients(model: Any, values: Values) -> list[Tensor]:
    """Of a sum of the log-probs with random weights, in every parameter."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), device=model.device)
    for branch in sorted(values):
        weights = torch.randn(len(values[branch]), generator=generator).to(model.device)
        total = total + (values[branch] * weights).sum()
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return list(found)


def worst_gradient_error(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error of a parameter's gradient; one that should vanish is measured by the whole gradient."""
    whole = torch.cat([each.flatten() for each in expected]).norm()
    return max(
        ((one - other).norm() / torch.maximum(other.norm(), 1e-2 * whole)).item()
        for one, other in zip(ours, expected, strict=True)
    )
