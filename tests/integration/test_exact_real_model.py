"""The real model of 135 million parameters: packed equals one text at a time; in bfloat16 it rounds no worse."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prm_ray.core.packing import PromptGroup
from prm_ray.models import load_model, load_tokenizer
from tests.exactness import Values, alone, gradients, largest_difference, together, worst_gradient_error


@pytest.fixture(scope="module")
def group(demo_model: Path) -> PromptGroup:
    """A chat prompt of some 250 tokens and 8 candidates of some 60, the first steps of which are the same in pairs."""
    tokenizer, rng = load_tokenizer(str(demo_model)), random.Random(0)

    def line() -> str:
        one, other = rng.randrange(10, 99), rng.randrange(10, 99)
        return f"Adding {one} and {other} gives {one + other}.\n"

    examples = "".join(f"{number}. {line()}" for number in range(16))
    chat = [{"role": "user", "content": f"Follow these examples:\n{examples}Now add up all the numbers."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    firsts = [line() + line() for _ in range(4)]
    texts = [first + line() + line() for first in firsts for _ in range(2)]
    return PromptGroup(list(prompt), [tokenizer(text, add_special_tokens=False).input_ids for text in texts])


def padded(model: torch.nn.Module, group: PromptGroup) -> Values:
    """Log-probs by the plain way: rows padded on the right, whole logits."""
    rows = [torch.tensor([*group.prompt, *response]) for response in group.responses]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(pad_sequence(rows, batch_first=True), attention_mask=mask, use_cache=False).logits
    found: Values = {}
    for number, (row, table) in enumerate(zip(rows, logits, strict=True)):
        start = len(group.prompt)
        logprobs = table[start - 1 : len(row) - 1].float().log_softmax(dim=1)
        found[0, number] = logprobs.gather(1, row[start:, None]).squeeze(1)
    return found


def errors(values: Values, expected: Values) -> Tensor:
    return torch.cat([(values[branch] - expected[branch]).abs() for branch in expected])


def test_the_texts_are_as_long_as_said(group: PromptGroup) -> None:
    assert 200 <= len(group.prompt) <= 300
    assert all(40 <= len(response) <= 80 for response in group.responses)


def test_packed_log_probs_of_the_real_model_are_exact(demo_model: Path, group: PromptGroup) -> None:
    model = load_model(str(demo_model), "float32")
    with torch.no_grad():
        assert largest_difference(together(model, [group]), alone(model, [group])) < 1e-4


def test_gradients_of_the_real_model_are_exact(demo_model: Path, group: PromptGroup) -> None:
    model = load_model(str(demo_model), "float32")
    two = [PromptGroup(group.prompt, group.responses[:2])]
    ours, expected = gradients(model, together(model, two)), gradients(model, alone(model, two))
    assert worst_gradient_error(ours, expected) < 1e-4


def test_bfloat16_rounds_no_worse_than_padded_rows(demo_model: Path, group: PromptGroup) -> None:
    model, exact = load_model(str(demo_model), "bfloat16"), load_model(str(demo_model), "float32")
    with torch.no_grad():
        plain = errors(padded(model, group), expected := alone(exact, [group]))
        ours = errors(together(model, [group]), expected)
    print(f"bfloat16 against float32: packed mean {ours.mean():.4f} max {ours.max():.4f}, ", end="")
    print(f"padded mean {plain.mean():.4f} max {plain.max():.4f}")
    assert ours.mean() < 1.5 * plain.mean()
