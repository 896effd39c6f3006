"""A chance of being right stays the number it is, from the imported file to the loss."""

import json
from pathlib import Path

import pytest
import torch

from prm_ray.core.packing import pack
from prm_ray.errors import UserError
from prm_ray.outcomedata import OutcomeData, held_out_metrics
from prm_ray.outcomelosses import CrossEntropy, PrefixCrossEntropy
from prm_ray.stages import import_
from prm_ray.stages.reference import ReferenceWorker
from prm_ray.stages.trainingrows import read_training_rows
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config
from tests.unit.test_trainer import no_preview

LABELS = [0.3, 0.7, True, 0]


@pytest.fixture
def config(tmp_path: Path, tiny_model: str):
    rows = [
        {"problem": problem, "text": f"{sample}", "correct": label, "split": split}
        for problem, split in (("1?", "train"), ("2?", "test"))
        for sample, label in enumerate(LABELS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_config(tmp_path / "run", tiny_model, **{"import": {"source": str(path)}})


def import_and_score(config) -> None:
    labels, reference = (StageFolder(config.run.dir, stage) for stage in ("import", "reference"))
    for folder in (labels, reference):
        folder.begin({})
    import_.run(config, labels)
    ReferenceWorker(config, labels, reference, "fingerprint")(0)


def test_three_tenths_stay_three_tenths_up_to_the_loss(config) -> None:
    import_and_score(config)
    rows = list(StageFolder(config.run.dir, "reference").rows())
    assert [(row["soft_label"], row["correct"]) for row in rows] == 2 * [
        *[(0.3, False), (0.7, True), (None, True), (None, False)]
    ]
    columns = ["prompt_id", "prompt_tokens", "response_tokens", "ref_logprobs", "correct", "soft_label"]
    table = read_training_rows(config, columns).table
    data = OutcomeData(table, CrossEntropy(1.0))
    assert data.labels == [0.3, 0.7, 1.0, 0.0]
    (batch,) = pack(data.groups([0]), 1000)
    ratios = torch.tensor([0.5, 1.0, -1.0, 2.0])
    reference_R = torch.cat([data.reference(row) for row in data.rows(0)])
    shifts_R = torch.cat([torch.full((length,), 1.0 / length) for length in batch.lengths])
    logprobs_R = reference_R + ratios.repeat_interleave(torch.tensor(batch.lengths)) * shifts_R
    right, wrong = -torch.nn.functional.logsigmoid(ratios), -torch.nn.functional.logsigmoid(-ratios)
    label = torch.tensor([0.3, 0.7, 1.0, 0.0])
    loss = data.loss([0], [batch], no_preview)(batch, logprobs_R)
    torch.testing.assert_close(loss, (label * right + (1 - label) * wrong).sum())


def test_the_prefix_objective_takes_the_same_number(config) -> None:
    """With one-token values of 0 everywhere, a margin of 2 weighs log s(-2) by the label and by the rest."""
    import_and_score(config)
    columns = ["prompt_id", "prompt_tokens", "response_tokens", "ref_logprobs", "correct", "soft_label"]
    table = read_training_rows(config, columns).table.slice(0, 1)
    data = OutcomeData(table, PrefixCrossEntropy(1.0, 2.0, "uniform"))
    (batch,) = pack(data.groups([0]), 1000)
    up = torch.full((batch.lengths[0],), 0.0)
    up[0] = 1.0  # prefix values 1, 1/2 ...
    values = 1.0 / torch.arange(1, len(up) + 1)
    expected = -(0.3 * torch.nn.functional.logsigmoid(values - 2) + 0.7 * torch.nn.functional.logsigmoid(-values - 2))
    loss = data.loss([0], [batch], no_preview)(batch, data.reference(0) + up)
    torch.testing.assert_close(loss, expected.mean())


def test_held_out_figures_take_the_chance_in_the_loss_and_right_above_one_half() -> None:
    figures = held_out_metrics([(0, 1.0, 0.7), (0, -1.0, 0.3)])
    assert figures["held_out_loss"] == pytest.approx(0.7 * 0.313262 + 0.3 * 1.313262, abs=1e-5)
    assert (figures["held_out_accuracy"], figures["held_out_auc"], figures["held_out_auc_within"]) == (1.0, 1.0, 1.0)


def test_an_objective_that_cannot_use_them_is_refused_before_any_stage_runs(config) -> None:
    pairs = config.model_copy(update={"train": config.train.model_copy(update={"objective": "dpo"})})
    with pytest.raises(UserError, match=r"'dpo' needs labels that are right or wrong, but 2 training .* the first 0.3"):
        import_.check(pairs)
    import_.check(config)
