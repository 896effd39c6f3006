"""The packed trainer against a plain loop over padded rows: same loss, same gradient, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prm_ray.adapters import AdapterSettings, add_adapter
from prm_ray.core.forward import response_logprobs
from prm_ray.core.packing import pack
from prm_ray.models import load_model
from prm_ray.outcomedata import OutcomeData
from prm_ray.trainer import Schedule, Trainer
from tests.unit.test_trainer import loss_of, outcome_data

TOLERANCE = 1e-4


def make_model(path: str, lora_rank: int) -> Any:
    model = load_model(path, "float32")
    if not lora_rank:
        return model
    model = add_adapter(model, AdapterSettings(lora_rank, 8.0), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()  # at its start of 0 the other factor would have no gradient
    return model


def padded_step(model: Any, data: OutcomeData, beta: float) -> tuple[float, list[Tensor]]:
    """A row a response, right-padded, logits of every position; the reference is -1 a token, as in the table."""
    items = list(range(len(data.sizes)))
    texts = [(group.prompt, response) for group in data.groups(items) for response in group.responses]
    longest = max(len(prompt) + len(response) for prompt, response in texts)
    rows = [[*prompt, *response] for prompt, response in texts]
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(dim=-1)
    logprobs = logprobs.gather(2, ids[:, 1:, None]).squeeze(2)
    spans = [slice(len(prompt) - 1, len(prompt) + len(response) - 1) for prompt, response in texts]
    ratios = torch.stack([logprobs[row, span].sum() + span.stop - span.start for row, span in enumerate(spans)])
    labels = torch.tensor([float(label) for label in data.labels])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(beta * ratios, labels)
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def packed_step(trainer: Trainer, data: OutcomeData) -> tuple[float, list[Tensor]]:
    items = list(range(len(data.sizes)))
    batches = pack(data.groups(items), 14)
    assert len(batches) > 1
    result = trainer.step(batches, loss_of(trainer, data, items, batches), data.count(items))
    return result.loss, [master.grad for master in trainer._masters if master.grad is not None]


def previewed(trainer: Trainer, data: OutcomeData) -> Tensor:
    """Log-probs [R] of the first prompt's responses under the trainer's weights."""
    return torch.cat([values for group in trainer.preview(data.groups([0]), 100) for values in group])


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("lora_rank", [0, 3])
def test_a_packed_step_has_the_loss_and_gradient_of_padded_rows(
    tiny_model: str, lora_rank: int, gradient_checkpointing: bool
) -> None:
    data = outcome_data(beta=0.5)
    trainer = Trainer(
        make_model(tiny_model, lora_rank),
        Schedule(1e-3, 1, 0.0),
        compute_dtype=torch.float32,
        grad_clip=1e9,
        gradient_checkpointing=gradient_checkpointing,
    )
    expected, gradients = padded_step(make_model(tiny_model, lora_rank), data, 0.5)
    loss, ours = packed_step(trainer, data)
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert len(ours) == len(gradients)
    for mine, theirs in zip(ours, gradients, strict=True):
        assert (mine - theirs).norm() <= TOLERANCE * theirs.norm()
        assert theirs.norm() > 0


def test_gradient_checkpointing_computes_layers_again_in_backward(tiny_model: str) -> None:
    """What it costs shows that it is on: the layers run twice as often."""
    counts = []
    for on in (False, True):
        model, calls = load_model(tiny_model, "float32"), []
        trainer = Trainer(model, Schedule(1e-3, 1, 0.0), compute_dtype=torch.float32, gradient_checkpointing=on)
        model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        packed_step(trainer, outcome_data())
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]


def test_the_model_that_trains_is_the_one_that_scores(tiny_model: str) -> None:
    """In bfloat16 too: rounding the rotary frequencies would give training other positions than scoring has."""
    data = outcome_data()
    (batch,) = pack(data.groups([0]), 100)
    trainer = Trainer(load_model(tiny_model, "float32"), Schedule(1e-3, 1, 0.0), compute_dtype=torch.bfloat16)
    with torch.no_grad():
        expected = response_logprobs(load_model(tiny_model, "bfloat16"), batch)
    assert torch.equal(previewed(trainer, data), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 3])
def test_what_is_saved_is_what_was_trained(tiny_model: str, tmp_path: Path, lora_rank: int, dtype: str) -> None:
    data = outcome_data()
    model = load_model(tiny_model, dtype if lora_rank else "float32")
    if lora_rank:
        model = add_adapter(model, AdapterSettings(lora_rank, 8.0), seed=0)
    trainer = Trainer(model, Schedule(1e-2, 1, 0.0), compute_dtype=getattr(torch, dtype))
    packed_step(trainer, data)
    trainer.save_model(tmp_path)
    (batch,) = pack(data.groups([0]), 100)
    with torch.no_grad():
        assert torch.equal(response_logprobs(load_model(str(tmp_path), dtype), batch), previewed(trainer, data))


def test_an_adapter_trains_itself_and_leaves_its_base(tiny_model: str) -> None:
    model = make_model(tiny_model, 3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, Schedule(1e-2, 1, 0.0), compute_dtype=torch.float32)
    packed_step(trainer, outcome_data())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert len(moved) == 2 * 2 * 7
