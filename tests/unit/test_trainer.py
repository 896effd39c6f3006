"""Trainer: how a step is cut into micro-batches, stopped and resumed changes nothing."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from prm_ray.core.packing import PackedBatch, PromptGroup, pack
from prm_ray.errors import NonFiniteLossError
from prm_ray.models import load_model
from prm_ray.outcomedata import OutcomeData, held_out_metrics
from prm_ray.outcomelosses import CrossEntropy, OutcomeLoss
from prm_ray.trainer import Loss, Schedule, Trainer
from prm_ray.trainingdata import plan_steps, share


def outcome_data(num_prompts: int = 4, beta: float = 0.5, objective: OutcomeLoss | None = None) -> OutcomeData:
    rows = [
        {
            "prompt_id": f"p{prompt}",
            "prompt_tokens": [5, 6 + prompt, 7],
            "response_tokens": [8 + prompt, 9 + sample, *([10] * sample), 4],
            "ref_logprobs": [-1.0] * (3 + sample),
            "correct": sample % 2 == 0,
            "mismatched_tokens": [30 + prompt, 31, 4] if sample == 0 else None,
            "mismatched_logprob": -30.0 if sample == 0 else None,  # the policy likes it more: a KL above 0
        }
        for prompt in range(num_prompts)
        for sample in range(3)
    ]
    return OutcomeData(pa.Table.from_pylist(rows), objective or CrossEntropy(beta))


def loss_of(trainer: Trainer, data: OutcomeData, items: list[int], batches: list[PackedBatch]) -> Loss:
    return data.loss(items, batches, partial(trainer.preview, token_budget=14))


def no_preview(groups: Sequence[PromptGroup]) -> list[list[torch.Tensor]]:
    raise AssertionError("the cross entropy of a response needs nobody else's")


def new_trainer(path: str, dtype: torch.dtype = torch.float32, lr: float = 1e-2) -> Trainer:
    return Trainer(load_model(path, "float32"), Schedule(lr, 20, 0.1), compute_dtype=dtype)


def run_steps(trainer: Trainer, data: OutcomeData, num_steps: int, token_budget: int = 1000) -> list[float]:
    losses = []
    for step in plan_steps(data.sizes, 6, 10, seed=0)[trainer.num_steps : trainer.num_steps + num_steps]:
        batches = pack(data.groups(step), token_budget)
        losses.append(trainer.step(batches, loss_of(trainer, data, step, batches), data.count(step)).loss)
    return losses


def test_micro_batch_size_does_not_change_the_step(tiny_model: str) -> None:
    results = [run_steps(new_trainer(tiny_model), outcome_data(), 3, budget) for budget in (1, 14, 1000)]
    assert results[0] == pytest.approx(results[2], abs=1e-5)
    assert results[1] == pytest.approx(results[2], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_falls(tiny_model: str, dtype: torch.dtype) -> None:
    losses = run_steps(new_trainer(tiny_model, dtype), outcome_data(), 16)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_gives_exactly_the_losses_of_an_uninterrupted_one(
    tiny_model: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    data = outcome_data()
    whole = run_steps(new_trainer(tiny_model, dtype), data, 8)
    first = new_trainer(tiny_model, dtype)
    start = run_steps(first, data, 3)
    first.save_state(tmp_path)
    second = new_trainer(tiny_model, dtype)
    second.load_state(tmp_path)
    assert start + run_steps(second, data, 5) == whole


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(tiny_model: str) -> None:
    trainer, data = new_trainer(tiny_model), outcome_data(beta=float("nan"))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(NonFiniteLossError, match="at step 0: not finite"):
        run_steps(trainer, data, 1)
    after = list(trainer.model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_plan_holds_every_item_once_an_epoch_in_another_order() -> None:
    steps = plan_steps([8] * 10, batch_size=32, epochs=2, seed=0)
    assert [len(step) for step in steps] == [4, 4, 2] * 2
    first, second = [*chain(*steps[:3])], [*chain(*steps[3:])]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_workers_share_a_step_without_overlap_even_when_there_are_more_of_them() -> None:
    assert [share([4, 5, 6], rank, 2) for rank in range(2)] == [[4, 6], [5]]
    assert [share([4], rank, 2) for rank in range(2)] == [[4], []]


def test_held_out_metrics_by_hand() -> None:
    """Problem 0: right 1, wrong 2 (AUC 0). Problem 1: right 3, wrong -1 (AUC 1). Over all, 3 of 4 pairs stand right."""
    results = [(0, 1.0, True), (0, 2.0, False), (1, 3.0, True), (1, -1.0, False)]
    metrics = held_out_metrics(results)
    assert metrics["held_out_auc"] == 0.75
    assert metrics["held_out_auc_within"] == 0.5
    assert metrics["held_out_accuracy"] == 0.75


def test_the_schedule_warms_up_and_ends_at_a_tenth() -> None:
    schedule = Schedule(lr=1.0, total_steps=100, warmup_ratio=0.1)
    assert schedule.at(0) == pytest.approx(0.1)
    assert schedule.at(9) == pytest.approx(1.0)
    assert schedule.at(100) == pytest.approx(0.1)


def test_the_result_is_the_mean_of_the_weights_at_the_ends_of_the_cycles(tiny_model: str) -> None:
    schedule = Schedule(1e-2, 6, 0.1, cycles=3)
    trainer = Trainer(load_model(tiny_model, "float32"), schedule, compute_dtype=torch.float32)
    data, ends = outcome_data(), []
    for step in range(1, 7):
        run_steps(trainer, data, 1)
        if step in (2, 4, 6):
            ends.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    trainer.use_average()
    for parameter, *at_ends in zip(trainer.model.parameters(), *ends, strict=True):
        torch.testing.assert_close(parameter.data, sum(at_ends) / 3)


def test_each_cycle_starts_with_a_warm_up_and_ends_low() -> None:
    schedule = Schedule(lr=1.0, total_steps=100, warmup_ratio=0.1, cycles=2)
    assert schedule.cycle_ends() == [50, 100]
    assert schedule.at(0) == schedule.at(50) == pytest.approx(0.2)
    assert schedule.at(49) == schedule.at(99) < 0.11


def test_frozen_embeddings_stay_and_the_rest_moves(tiny_model: str) -> None:
    schedule = Schedule(1e-2, 20, 0.1)
    model = load_model(tiny_model, "float32")
    trainer = Trainer(model, schedule, compute_dtype=torch.float32, freeze_embeddings=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = run_steps(trainer, outcome_data(), 8)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "embed_tokens" not in name and "lm_head" not in name}
    assert losses[-1] < losses[0]


def test_norms_move_at_a_rate_of_their_own_and_go_on_with_it(tiny_model: str, tmp_path: Path) -> None:
    """The first step of Adam moves every weight by its learning rate, whatever the gradient."""

    def trainer() -> Trainer:
        model = load_model(tiny_model, "float32")
        return Trainer(model, Schedule(1e-4, 20, 0.0), compute_dtype=torch.float32, norm_lr=1e-2)

    first, data = trainer(), outcome_data()
    before = {name: parameter.detach().clone() for name, parameter in first.model.named_parameters()}
    run_steps(first, data, 1)
    for name, parameter in first.model.named_parameters():
        largest = (parameter - before[name]).abs().max().item()
        assert largest == pytest.approx(1e-2 if parameter.ndim == 1 else 1e-4, rel=0.05), name
    first.save_state(tmp_path)
    second = trainer()
    second.load_state(tmp_path)
    assert run_steps(second, data, 2) == run_steps(first, data, 2)


def test_a_response_sampled_twice_weighs_twice_and_is_computed_once() -> None:
    row = {"prompt_id": "p", "prompt_tokens": [5], "ref_logprobs": [-1.0, -1.0], "correct": True}
    tokens = [[7, 4], [8, 4], [7, 4]]
    data = OutcomeData(pa.Table.from_pylist([row | {"response_tokens": each} for each in tokens]), CrossEntropy(1.0))
    (group,) = data.groups([0])
    assert [list(response) for response in group.responses] == [[7, 4], [8, 4]]
    assert data.count([0]) == data.sizes[0] == 3
    (batch,) = pack([group], 100)
    logprobs = torch.tensor([0.5, 0.0, -1.0, 0.0])  # log-ratios 2.5 and 1
    expected = 2 * torch.nn.functional.softplus(torch.tensor(-2.5)) + torch.nn.functional.softplus(torch.tensor(-1.0))
    torch.testing.assert_close(data.loss([0], [batch], no_preview)(batch, logprobs), expected)


def test_prompts_with_one_kind_of_label_are_left_out_when_asked() -> None:
    rows = [
        {
            "prompt_id": prompt,
            "prompt_tokens": [5],
            "response_tokens": [token],
            "ref_logprobs": [-1.0],
            "correct": label,
        }
        for prompt, labels in (("all right", (True, True)), ("mixed", (True, False)), ("all wrong", (False, False)))
        for token, label in enumerate(labels, start=7)
    ]
    table = pa.Table.from_pylist(rows)
    assert OutcomeData(table, CrossEntropy(1.0)).sizes == [2, 2, 2]
    assert OutcomeData(table, CrossEntropy(1.0), skip_uniform=True).sizes == [2]


def test_balanced_labels_weigh_the_same_in_each_prompt_and_keep_the_count() -> None:
    """One right of three: weight 1.5 for it and 0.75 for each wrong one."""
    row = {"prompt_id": "p", "prompt_tokens": [5], "ref_logprobs": [-1.0]}
    rows = [row | {"response_tokens": [token], "correct": token == 7} for token in (7, 8, 9)]
    data = OutcomeData(pa.Table.from_pylist(rows), CrossEntropy(1.0), balance="prompt")
    (batch,) = pack(data.groups([0]), 100)
    softplus = torch.nn.functional.softplus
    loss = data.loss([0], [batch], no_preview)(batch, torch.tensor([1.0, -1.0, -1.0]))  # log-ratios 2, 0, 0
    torch.testing.assert_close(loss, 1.5 * softplus(torch.tensor(-2.0)) + 1.5 * softplus(torch.tensor(0.0)))
    assert data.count([0]) == 3
