"""How a step is cut into micro-batches changes no objective, pairs across the cut included; each is what it says."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from prm_ray.core.objectives import cross_entropy, dpo, kto, nca, prefix_cross_entropy
from prm_ray.core.packing import PackedBatch, pack
from prm_ray.models import load_model
from prm_ray.outcomedata import OutcomeData
from prm_ray.outcomelosses import CrossEntropy, Kto, OutcomeLoss, Pairs, PrefixCrossEntropy
from prm_ray.trainer import Schedule, Trainer
from tests.unit.test_trainer import loss_of, outcome_data

BETA = 0.5
OBJECTIVES: dict[str, OutcomeLoss] = {
    "ce": CrossEntropy(BETA),
    "dpo": Pairs(dpo, BETA, None, seed=0),
    "dpo, capped": Pairs(dpo, BETA, 1, seed=0),
    "nca": Pairs(nca, BETA, None, seed=0),
    "kto": Kto(BETA),
    "prefix": PrefixCrossEntropy(BETA, 0.5, "late"),
}


def one_step(path: str, data: OutcomeData, token_budget: int) -> tuple[float, list[Tensor], list[PackedBatch]]:
    trainer = Trainer(load_model(path, "float32"), Schedule(1e-3, 1, 0.0), compute_dtype=torch.float32, grad_clip=1e9)
    items = list(range(len(data.sizes)))
    batches = pack(data.groups(items), token_budget)
    result = trainer.step(batches, loss_of(trainer, data, items, batches), data.count(items))
    return result.loss, [master.grad for master in trainer._masters if master.grad is not None], batches


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cutting_a_prompts_responses_apart_changes_neither_loss_nor_gradient(tiny_model: str, name: str) -> None:
    data = outcome_data(objective=OBJECTIVES[name])
    whole, gradients, (_,) = one_step(tiny_model, data, 1000)
    for budget in (1, 10):
        loss, cut, batches = one_step(tiny_model, data, budget)
        cut_groups = [{group for group, _ in batch.branches} for batch in batches]
        assert any(one & other for one, other in pairwise(cut_groups))
        assert loss == pytest.approx(whole, rel=1e-5)
        for ours, theirs in zip(cut, gradients, strict=True):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() and theirs.norm() > 0


def log_ratios(model: Any, data: OutcomeData, item: int) -> list[Tensor]:
    """Of each response by itself, from the model's own logits; the table's reference is -1 a token."""
    found = []
    for response in data.groups([item])[0].responses:
        prompt = data.prompt(item)
        ids = torch.tensor([[*prompt, *response]])
        logprobs = model(ids).logits[0, :-1].log_softmax(dim=-1)[len(prompt) - 1 :]
        found.append(logprobs.gather(1, torch.tensor(response)[:, None]).squeeze(1) + 1.0)
    return found


def sums(per_item: list[list[Tensor]]) -> Tensor:
    return torch.stack([values.sum() for ratios in per_item for values in ratios])


def kl_by_hand(model: Any, data: OutcomeData, num_items: int) -> Tensor:
    ratios = []
    for item in range(num_items):
        (tokens, reference) = data.mismatched(item)[0]
        ids = torch.tensor([[*data.prompt(item), *tokens]])
        logprobs = model(ids).logits[0, :-1].log_softmax(dim=-1)[len(data.prompt(item)) - 1 :]
        ratios.append(logprobs.gather(1, torch.tensor(tokens)[:, None]).sum() - reference)
    return torch.stack(ratios).mean()


RIGHT = torch.tensor([True, False, True] * 4)
PAIRS = torch.tensor([[3 * item + right, 3 * item + 1] for item in range(4) for right in (0, 2)])
EXPECTED: dict[str, Callable[[list[list[Tensor]], Tensor], Tensor]] = {
    "ce": lambda ratios, kl: cross_entropy(sums(ratios), RIGHT, BETA) / 12,
    "dpo": lambda ratios, kl: dpo(sums(ratios), PAIRS, BETA) / 8,
    "nca": lambda ratios, kl: nca(sums(ratios), PAIRS, BETA) / 8,
    "kto": lambda ratios, kl: kto(sums(ratios), RIGHT, kl, BETA) / 12,
    "prefix": lambda ratios, kl: (
        sum(
            (
                prefix_cross_entropy(values, label, BETA, 0.5, "late")
                for values, label in zip([v for each in ratios for v in each], RIGHT.tolist(), strict=True)
            ),
            start=torch.zeros(()),
        )
        / 12
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_step_has_the_loss_of_the_responses_one_by_one(tiny_model: str, name: str) -> None:
    data, model = outcome_data(objective=OBJECTIVES[name]), load_model(tiny_model, "float32")
    with torch.no_grad():
        expected = EXPECTED[name]([log_ratios(model, data, item) for item in range(4)], kl_by_hand(model, data, 4))
    assert one_step(tiny_model, data, 1000)[0] == pytest.approx(expected.item(), rel=1e-5)


def test_a_cap_keeps_so_many_pairs_of_a_prompt_always_the_same() -> None:
    data = outcome_data(objective=Pairs(dpo, BETA, 1, seed=3))
    assert data.count(range(4)) == 4
    assert outcome_data(objective=Pairs(dpo, BETA, None, seed=3)).count(range(4)) == 8


def test_without_a_reference_its_log_probs_do_not_matter(tiny_model: str) -> None:
    table = outcome_data()._table
    ratios = []
    for value in (-1.0, -7.0):
        changed = table.set_column(
            table.schema.get_field_index("ref_logprobs"),
            "ref_logprobs",
            [[[value] * len(each) for each in table["ref_logprobs"].to_pylist()]],
        )
        data = OutcomeData(changed, CrossEntropy(BETA), with_reference=False)
        ratios.append(one_step(tiny_model, data, 1000)[0])
    assert ratios[0] == ratios[1]
    assert ratios[0] != one_step(tiny_model, outcome_data(), 1000)[0]
