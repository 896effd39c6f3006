"""Every objective against plain Python arithmetic in double precision, and its slope against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prm_ray.core.objectives import (
    cross_entropy,
    dpo,
    kto,
    kto_kl,
    nca,
    negative_log_likelihood,
    prefix_cross_entropy,
)
from prm_ray.core.stepobjectives import step_ranking, step_sign, step_squared_error

RATIOS = [1.5, -0.7, 0.2, -2.1]
CORRECT = [True, False, True, False]
PAIRS = [(0, 1), (0, 3), (2, 1), (2, 3)]
BETA = 0.4


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def sigmoid(value: float) -> float:
    return math.exp(log_sigmoid(value))


def by_hand_ce() -> float:
    return -sum(log_sigmoid(BETA * r if right else -BETA * r) for r, right in zip(RATIOS, CORRECT, strict=True))


def by_hand_dpo() -> float:
    return -sum(log_sigmoid(BETA * (RATIOS[right] - RATIOS[wrong])) for right, wrong in PAIRS)


def by_hand_nca() -> float:
    return -sum(
        log_sigmoid(BETA * RATIOS[right])
        + 0.5 * log_sigmoid(-BETA * RATIOS[right])
        + 0.5 * log_sigmoid(-BETA * RATIOS[wrong])
        for right, wrong in PAIRS
    )


def by_hand_kto() -> float:
    kl = torch.tensor(0.3).item()  # as float32 has it
    return sum(
        1 - sigmoid(BETA * (r - kl) if right else BETA * (kl - r)) for r, right in zip(RATIOS, CORRECT, strict=True)
    )


def by_hand_prefix(label: float, weights: list[float], margin: float) -> float:
    total = 0.0
    for number, weight in enumerate(weights, start=1):
        value = BETA * sum(RATIOS[:number]) / number
        total -= weight * (label * log_sigmoid(value - margin) + (1 - label) * math.log(1 - sigmoid(value + margin)))
    return total / sum(weights)


def by_hand_ranking(zeta: float) -> float:
    """Right steps 0 and 2 behind the empty prefix of value 0, wrong steps 1 and 3."""
    wrong = sum(math.exp(RATIOS[step] + zeta) for step in (1, 3))
    right = [0.0, RATIOS[0], RATIOS[2]]
    losses = [
        -math.log(math.exp(value) / (sum(map(math.exp, right[: place + 1])) + wrong))
        for place, value in enumerate(right)
    ]
    return sum(losses) / 3


correct = torch.tensor(CORRECT)
pairs = torch.tensor(PAIRS)
CASES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "ce": (lambda r: cross_entropy(r, correct, BETA), by_hand_ce()),
    "dpo": (lambda r: dpo(r, pairs, BETA), by_hand_dpo()),
    "nca": (lambda r: nca(r, pairs, BETA), by_hand_nca()),
    "kto": (lambda r: kto(r, correct, torch.tensor(0.3).double(), BETA), by_hand_kto()),
    "prefix, right": (lambda r: prefix_cross_entropy(r, True, BETA, 0.5), by_hand_prefix(1.0, [1, 1, 1, 1], 0.5)),
    "prefix, wrong": (lambda r: prefix_cross_entropy(r, False, BETA, 0.5), by_hand_prefix(0.0, [1, 1, 1, 1], 0.5)),
    "prefix, late": (
        lambda r: prefix_cross_entropy(r, 0.3, BETA, 0.5, "late"),
        by_hand_prefix(0.3, [1, 2, 3, 4], 0.5),
    ),
    "prefix, early": (
        lambda r: prefix_cross_entropy(r, True, BETA, 0.0, "early"),
        by_hand_prefix(1.0, [4, 3, 2, 1], 0.0),
    ),
    "step sign": (
        lambda r: step_sign(r, correct),
        -sum(log_sigmoid(abs(r) if ok else -abs(r)) for r, ok in zip(RATIOS, CORRECT, strict=True)) / 4,
    ),
    "step squared error": (
        lambda r: step_squared_error(r, correct),
        sum((sigmoid(r) - ok) ** 2 for r, ok in zip(RATIOS, CORRECT, strict=True)) / 4,
    ),
    "step ranking": (lambda r: step_ranking(r, correct, zeta=2.0), by_hand_ranking(2.0)),
    "likelihood": (negative_log_likelihood, -sum(RATIOS)),
}
many = pytest.mark.parametrize("name", CASES)


@many
def test_a_value_is_that_of_plain_arithmetic(name: str) -> None:
    loss, expected = CASES[name]
    assert loss(torch.tensor(RATIOS, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


@many
def test_a_gradient_is_that_of_finite_differences(name: str) -> None:
    loss, _ = CASES[name]
    assert torch.autograd.gradcheck(loss, torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True))


@many
def test_a_few_steps_of_descent_lower_the_loss(name: str) -> None:
    loss, _ = CASES[name]
    ratios = torch.tensor(RATIOS, requires_grad=True)
    losses = []
    for _ in range(5):
        value = loss(ratios)
        losses.append(value.item())
        (grad,) = torch.autograd.grad(value, ratios)
        ratios = (ratios - 0.1 * grad).detach().requires_grad_(True)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


@many
def test_rewards_of_hundreds_neither_overflow_nor_lose_their_slope(name: str) -> None:
    """Sums of log-ratios are ordinarily that large; a wrong sign must still be felt."""
    loss, _ = CASES[name]
    ratios = torch.tensor([-900.0, 900.0, -900.0, 900.0], requires_grad=True)
    value = loss(ratios)
    (grad,) = torch.autograd.grad(value, ratios)
    assert value.isfinite() and grad.isfinite().all()
    if name not in ("kto", "step sign", "step squared error"):  # bounded losses are flat there by their nature
        assert grad.abs().max() > 1e-3


def test_weights_multiply_the_losses_of_their_responses_or_pairs() -> None:
    ratios = torch.tensor(RATIOS)
    for loss, items in ((cross_entropy, correct), (dpo, pairs), (nca, pairs)):
        single = [loss(ratios if items is pairs else ratios[i : i + 1], items[i : i + 1], BETA) for i in range(4)]
        weighted = loss(ratios, items, BETA, torch.tensor([1.0, 0.0, 2.0, 3.0]))
        torch.testing.assert_close(weighted, single[0] + 2 * single[2] + 3 * single[3])


def test_a_soft_label_stays_what_it_is() -> None:
    """With 0.3 the loss is least where sigmoid(reward) is 0.3, not where it is 0 or 1."""
    ratio = torch.tensor([0.0], requires_grad=True)
    for _ in range(500):
        (grad,) = torch.autograd.grad(cross_entropy(ratio, torch.tensor([0.3]), 1.0), ratio)
        ratio = (ratio - grad).detach().requires_grad_(True)
    assert torch.sigmoid(ratio).item() == pytest.approx(0.3, abs=1e-4)


def test_the_kl_of_kto_is_a_mean_that_is_never_negative_and_has_no_slope() -> None:
    ratios = torch.tensor([1.0, 2.0], requires_grad=True)
    kl = kto_kl(ratios)
    assert kl.item() == 1.5 and not kl.requires_grad
    assert kto_kl(-ratios).item() == 0.0


def test_a_ranking_without_wrong_steps_only_asks_for_rising_values() -> None:
    everything = torch.tensor([True, True])
    rising, falling = (step_ranking(torch.tensor(values), everything) for values in ([1.0, 2.0], [-1.0, -2.0]))
    assert rising < falling


# What TRL 0.19.1 gave for log-probs of these log-ratios, beta 0.1, in double precision: the methods
# `DPOTrainer.dpo_loss`, loss_type "sigmoid" and "nca_pair", and `KTOTrainer.kto_loss`, both weights 1, each called by
# itself with those settings. They are losses of single pairs and responses: TRL takes the mean over the batch behind
# them, while ours are sums that the trainer divides.
TRL_RIGHT, TRL_WRONG, TRL_MISMATCHED = [1.5, -0.75, 2.25], [-0.5, 3.25, -2.5], [1.25, 0.5, 1.75, -0.25]
TRL_LOSSES = {
    "dpo": [0.5981388693815918, 0.9130152523999526, 0.48358908787082466],
    "nca": [1.3406653956909413, 1.4939215132292818, 1.2809127130139775],
    "kto": [
        *(0.4828192666178145, 0.538983220687684, 0.46412425695036486),  # right
        *(0.46723452287924006, 0.5606375698448058, 0.4179365100225143),  # wrong
    ],
}


def test_losses_are_those_of_trl() -> None:
    ratios = torch.tensor([*TRL_RIGHT, *TRL_WRONG], dtype=torch.float64)
    for loss, name in ((dpo, "dpo"), (nca, "nca")):
        ours = [loss(ratios, torch.tensor([[pair, pair + 3]]), 0.1).item() for pair in range(3)]
        assert ours == pytest.approx(TRL_LOSSES[name], rel=1e-12), name
    kl = kto_kl(torch.tensor(TRL_MISMATCHED, dtype=torch.float64))
    right = torch.tensor([True] * 3 + [False] * 3)
    ours = [kto(ratios[[row]], right[[row]], kl, 0.1).item() for row in range(6)]
    assert kl.item() == 0.8125 and ours == pytest.approx(TRL_LOSSES["kto"], rel=1e-12)
