"""Reward models with a head: packed values are the model's own, losses are what they say, checkpoints come back."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from prm_ray.core.forward import response_values
from prm_ray.core.heads import LabelTokens, score_head
from prm_ray.core.objectives import dpo
from prm_ray.core.packing import PromptGroup, pack
from prm_ray.core.stepobjectives import step_cross_entropy, step_ranking, step_squared_error
from prm_ray.core.support import check_model
from prm_ray.errors import UserError
from prm_ray.headscorer import HeadScorer
from prm_ray.models import load_model, load_tokenizer, write_prm_json
from prm_ray.outcomedata import OutcomeData
from prm_ray.outcomelosses import CrossEntropy, OutcomeLoss, Pairs
from prm_ray.rewardmodels import load_with_value_head, reading_of
from prm_ray.scorer import Scorer, group_values
from prm_ray.steplosses import StepLoss
from prm_ray.trainer import Schedule, Trainer

GROUPS = [
    PromptGroup([5, 6, 7], [[8, 9, 10], [8, 9, 11, 12], [8]]),
    PromptGroup([5, 6, 9, 9], [[13, 14], [8, 9, 10, 15, 16]]),
]
LABELS = LabelTokens(right=20, wrong=21)
STEP_ENDS, STEP_LABELS = [2, 4], [1.0, 0.3]


def hidden_states(model: Any, tokens: list[int]) -> torch.Tensor:
    return model.base_model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


def test_packed_logits_are_those_of_each_response_alone(tiny_model: str) -> None:
    for model, head in (
        (load_model(tiny_model, "float32"), LABELS),
        (load_with_value_head(tiny_model, "float32", seed=3), score_head),
    ):
        packed = group_values(model, GROUPS, 12, partial(response_values, head=head))
        for group, values in zip(GROUPS, packed, strict=True):
            for response, values_T in zip(group.responses, values, strict=True):
                with torch.no_grad():
                    own_TE = hidden_states(model, [*group.prompt, *response])[len(group.prompt) :]
                    torch.testing.assert_close(values_T, head(model, own_TE), atol=1e-5, rtol=0)


def test_the_label_logit_is_the_log_odds_of_the_two_words(tiny_model: str) -> None:
    model = load_model(tiny_model, "float32")
    with torch.no_grad():
        probabilities = model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1, [20, 21]].softmax(dim=0)
        logit = LABELS(model, hidden_states(model, [5, 6, 7, 8])[-1:])
    assert torch.sigmoid(logit).item() == pytest.approx(probabilities[0].item(), abs=1e-6)


def test_a_new_value_head_is_the_same_for_the_same_seed_and_only_then(tiny_model: str) -> None:
    heads: list[Any] = [load_with_value_head(tiny_model, "float32", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(heads[0].score.weight, heads[1].score.weight)
    assert not torch.equal(heads[0].score.weight, heads[2].score.weight)


def labelled_data(objective: OutcomeLoss, kind: Any = "head") -> OutcomeData:
    rows = [
        {
            "prompt_id": f"p{prompt}",
            "prompt_tokens": [5, 6 + prompt, 7],
            "response_tokens": [8 + prompt, 9 + sample, 10, 4],
            "ref_logprobs": [-2.0, -1.0, -1.0, -3.0],
            "correct": sample == 0,
            "step_ends": STEP_ENDS,
            "step_labels": [1.0, 1.0] if sample == 0 else STEP_LABELS,
        }
        for prompt in range(3)
        for sample in range(2)
    ]
    return OutcomeData(pa.Table.from_pylist(rows), objective, kind=kind)


def one_loss(model: Any, data: OutcomeData, reading: Any, budget: int = 1000) -> float:
    trainer = Trainer(model, Schedule(1e-3, 1, 0.0), compute_dtype=torch.float32, reading=reading)
    items = list(range(len(data.sizes)))
    batches = pack(data.groups(items), budget)
    preview = partial(trainer.preview, token_budget=budget)
    return trainer.step(batches, data.loss(items, batches, preview), data.count(items)).loss


def own_values(model: Any, data: OutcomeData) -> list[tuple[int, torch.Tensor]]:
    """(row, logits at its tokens) from the model's own pass, a response at a time."""
    found = []
    for item in range(len(data.sizes)):
        for row, response in zip(data.rows(item), data.groups([item])[0].responses, strict=True):
            own_TE = hidden_states(model, [*data.prompt(item), *response])[3:]
            found.append((row, score_head(model, own_TE)))
    return found


@pytest.mark.parametrize("labels", ["soft", "hard", "outcome"])
def test_step_cross_entropy_is_asked_of_the_logit_at_the_end_of_each_step(tiny_model: str, labels: Any) -> None:
    data = labelled_data(StepLoss(step_cross_entropy, labels))
    model = load_with_value_head(tiny_model, "float32", seed=3)
    wrong = {"soft": STEP_LABELS, "hard": [1.0, 1.0], "outcome": [0.0, 0.0]}[labels]
    with torch.no_grad():
        losses = [
            functional.binary_cross_entropy_with_logits(values_T[[1, 3]], torch.tensor([[1.0, 1.0], wrong][row % 2]))
            for row, values_T in own_values(model, data)
        ]
    expected = torch.stack(losses).mean().item()
    for budget in (1000, 8):
        fresh = load_with_value_head(tiny_model, "float32", seed=3)
        loss = one_loss(fresh, data, partial(response_values, head=score_head), budget)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_an_outcome_head_is_asked_at_the_last_token(tiny_model: str) -> None:
    model = load_with_value_head(tiny_model, "float32", seed=3)
    for objective in (CrossEntropy(1.0), Pairs(dpo, 1.0, None, seed=0)):
        data = labelled_data(objective)
        with torch.no_grad():
            last = torch.stack([values_T[-1] for _, values_T in own_values(model, data)])
        if isinstance(objective, Pairs):
            expected = -functional.logsigmoid(last[0::2] - last[1::2]).mean()
        else:
            expected = functional.binary_cross_entropy_with_logits(last, torch.tensor([1.0, 0.0] * 3))
        fresh = load_with_value_head(tiny_model, "float32", seed=3)
        loss = one_loss(fresh, data, partial(response_values, head=score_head))
        assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_step_objectives_of_log_ratios_add_tokens_up_and_prefixes_of_a_ranking_too(tiny_model: str) -> None:
    model, beta = load_model(tiny_model, "float32"), 0.5
    error = labelled_data(StepLoss(step_squared_error, "soft", beta), "log_ratio")
    ranking = labelled_data(
        StepLoss(lambda q_S, label_S: step_ranking(q_S, label_S > 0.5), "soft", beta, of_prefixes=True), "log_ratio"
    )
    expected = {"error": [], "ranking": []}
    for item in range(3):
        for sample, response in enumerate(error.groups([item])[0].responses):
            with torch.no_grad():
                logits = model(torch.tensor([[*error.prompt(item), *response]])).logits[0, 2:-1].log_softmax(-1)
            ratios = logits.gather(1, torch.tensor(response)[:, None])[:, 0] - torch.tensor([-2.0, -1.0, -1.0, -3.0])
            steps = beta * torch.stack([ratios[:2].sum(), ratios[2:].sum()])
            labels = torch.tensor([1.0, 1.0] if sample == 0 else STEP_LABELS)
            expected["error"].append(((torch.sigmoid(steps) - labels) ** 2).mean())
            expected["ranking"].append(step_ranking(steps.cumsum(0), labels > 0.5))
    for name, data in (("error", error), ("ranking", ranking)):
        loss = one_loss(load_model(tiny_model, "float32"), data, reading_of("log_ratio", (), None))
        assert loss == pytest.approx(torch.stack(expected[name]).mean().item(), rel=1e-5), name


def test_a_trained_head_is_stored_loaded_and_scores_as_it_was_trained(tiny_model: str, tmp_path: Path) -> None:
    data = labelled_data(CrossEntropy(1.0))
    reading = partial(response_values, head=score_head)
    model = load_with_value_head(tiny_model, "float32", seed=3)
    trainer = Trainer(model, Schedule(1e-2, 20, 0.0), compute_dtype=torch.float32, reading=reading, head_lr=0.1)
    batches = pack(data.groups(range(3)), 1000)
    losses = [trainer.step(batches, data.loss([0, 1, 2], batches, trainer.preview), 6).loss for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    trainer.save_model(tmp_path)
    load_tokenizer(tiny_model).save_pretrained(tmp_path)
    facts = {"reward": "value_head", "step_rule": "newline", "prompt": {}}
    write_prm_json(tmp_path, facts)
    scorer = HeadScorer.from_pretrained(tmp_path, dtype="float32")
    (expected,) = trainer.preview(data.groups([0]), 1000)
    (logits,) = scorer.step_logits(data.groups([0]), [[STEP_ENDS, STEP_ENDS]])
    for ours, theirs_T in zip(logits, expected, strict=True):
        assert ours == pytest.approx(theirs_T[[1, 3]].tolist(), abs=1e-5)
    scored = scorer.score("1+2", ["3\n4", "5"])
    assert [len(each.step_rewards) for each in scored] == [2, 1]
    assert scored[0].rewards["last"] == scored[0].step_rewards[-1]
    with pytest.raises(UserError, match="has a value_head: load it with HeadScorer"):
        Scorer.from_pretrained(tmp_path)


def test_a_label_that_is_no_single_token_is_refused(tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(UserError, match=r"'right' is \d tokens of this tokenizer; it must be one"):
        reading_of("label_token", ("right", "-"), tokenizer)
    with pytest.raises(UserError, match="one and the same token"):
        reading_of("label_token", ("+", "+"), tokenizer)


def test_a_head_whose_scores_happen_to_be_near_0_is_not_taken_for_an_unknown_model(tiny_model: str) -> None:
    """In bfloat16 rounding is a large share of such scores, but not of the hidden states that they are read from."""
    model = load_with_value_head(tiny_model, "bfloat16", seed=0)
    tokens = torch.tensor([[11, 7, 13, 5, *response] for response in ([3, 11, 17, 3, 7], [3, 11, 2, 19, 5])])
    hidden_XE = model.base_model(input_ids=tokens).last_hidden_state.flatten(0, 1).detach().float()
    least = torch.linalg.eigh(hidden_XE.T @ hidden_XE).eigenvectors[:, :1].T
    model.score.weight.data = least.to(model.score.weight)
    check_model(model)
