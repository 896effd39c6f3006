"""rerank and evaluate on a small scores/ folder whose every figure can be worked out by hand.

Six candidates in four problems take part (N = 2), the reward is `reward_sum`:
  p1  rewards 2, 1  right, wrong        sample .5  PRM 1  vote 1 (tie, first seen)
  p2  rewards 0, 3  right, wrong        sample .5  PRM 0  vote 1
  p3  rewards 1, 2  not judged, right   sample .5  PRM 1  vote 1 (the first has no answer)
  p4  reward  1     right; one failed   sample 1   PRM 1  vote 1
  p5  both failed: no candidate, left out
"""

import json
import re

import pytest

from prm_ray.config import RunConfig
from prm_ray.core.rewards import AGGREGATIONS
from prm_ray.errors import UserError
from prm_ray.stages import evaluate, rerank
from prm_ray.stages.candidates import read_problems, survey
from prm_ray.stages.gallery import KINDS
from prm_ray.stages.plots import label_of
from prm_ray.stages.report import points_with_interval
from prm_ray.tables import StageFolder

EVIL = "<script>alert(1)</script> 5 < 6 & more"
FAILED = {"error": "prompt too long: 2000 tokens"}


def row(prompt_id, index, reward=None, correct=None, answer=None, **more):
    rewards = {} if reward is None else {f"reward_{how}": reward for how in AGGREGATIONS}
    steps = {} if reward is None else {"step_rewards": [reward - 1.0, 1.0], "ref_logprobs": [-1.0, -float(index)]}
    steps |= {} if reward is None else {"policy_logprobs": [reward, -1.0], "step_ends": [1, 2]}
    return {
        "prompt_id": prompt_id,
        "split": "test",
        "sample_index": index,
        "problem": f"{EVIL} {prompt_id}",
        "gold_answer": "1",
        "text": None if reward is None else f"first <b>step</b>\n\nanswer {answer}",
        "answer": answer,
        "correct": correct,
        **rewards,
        **steps,
        **more,
    }


PARTS = [
    [
        row("p1", 1, 1.0, False, "2"),  # out of order on purpose
        row("p1", 0, 2.0, True, "1"),
        row("p2", 0, 0.0, True, "1"),
        row("p2", 1, 3.0, False, "2"),
        row("p9", 0, 9.0, False, "2", split="train"),
    ],
    [
        row("p3", 0, 1.0, label_error="timeout: 5 s"),
        row("p3", 1, 2.0, True, "1"),
        row("p4", 0, **FAILED),
        row("p4", 1, 1.0, True, "1"),
        row("p5", 0, **FAILED),
        row("p5", 1, **FAILED),
    ],
]


def make_run(tmp_path, parts=PARTS, with_reference=True, **rerank_section):
    sections = {
        "score": {"with_reference": with_reference},
        "run": {"dir": str(tmp_path)},
        "import": {"source": "elsewhere.jsonl"},
    }
    config = RunConfig.model_validate({**sections, "rerank": {"sizes": [1, 2, 4], **rerank_section}})
    scores = StageFolder(tmp_path, "score")
    scores.begin({})
    for index, rows in enumerate(parts):
        scores.write_part(index, rows)
    scores.finish({"stage": "score", "rows_in": 11, "rows_out": 11, "failed": {}, "seconds": 2.0, "tokens": 100})
    return config


def run_stages(config):
    results = []
    for stage, module in (("rerank", rerank), ("evaluate", evaluate)):
        folder = StageFolder(config.run.dir, stage)
        folder.begin({})
        results.append(module.run(config, folder))
        folder.finish({"stage": stage})
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run with both stages done, for tests that only read; and what the stages handed back."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_stages(make_run(folder))


def picks_of(tmp_path):
    return {(row["prompt_id"], row["method"], row["n"]): row for row in StageFolder(tmp_path, "rerank").rows()}


def page_of(tmp_path):
    return (tmp_path / "report" / "report.html").read_text()


def report_of(tmp_path):
    return json.loads((tmp_path / "report" / "report.json").read_text())


def test_picks_name_the_candidate_where_n_is_all_of_them(finished):
    folder, (rerank_result, _) = finished
    picks = picks_of(folder)
    pick = picks["p2", "prm_sum", 2]
    assert (pick["sample_index"], pick["answer"], pick["correct"], pick["accuracy"]) == (1, "2", False, 0.0)
    assert picks["p1", "prm_sum", 1]["accuracy"] == 0.5 and picks["p1", "prm_sum", 1]["sample_index"] is None
    assert picks["p1", "majority", 2]["sample_index"] == 0
    assert picks["p4", "oracle", 2]["sample_index"] == 1
    assert {key[2] for key in picks} == {1, 2}, "4 is above the number of candidates"
    assert rerank_result.failed == {"prompt too long": 3}
    assert rerank_result.details["problems_with_fewer_candidates"] == {1: 0, 2: 1}


def test_report_has_the_accuracies_worked_out_above(finished):
    """pass@1 (.5 + .5 + .5 + 1) / 4 = .625; PRM 3 / 4; vote and oracle 1. The reference prefers index 0 (mean -.5)
    in p1 and p2 (right), and in p3 (not judged, so not right): 3 / 4."""
    report = report_of(finished[0])
    at_2 = {method: figures["2"]["value"] for method, figures in report["accuracy"].items()}
    assert report["pass@1"]["value"] == 0.625
    assert (at_2["prm_sum"], at_2["majority"], at_2["oracle"], at_2["ref_logprob_mean"]) == (0.75, 1.0, 1.0, 1.0)
    assert all(figures["1"]["value"] == pytest.approx(0.625) for figures in report["accuracy"].values())
    assert report["against_pass@1"]["prm_sum"]["2"]["difference"]["value"] == 0.125
    assert report["against_pass@1"]["prm_sum"]["2"]["ratio"]["value"] == pytest.approx(1.2)
    assert report["against_majority"]["prm_sum"]["2"]["difference"]["value"] == -0.25
    assert report["against_majority"]["majority"]["2"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_report_counts_what_was_left_out(finished):
    report = report_of(finished[0])
    assert (report["num_problems"], report["num_problems_without_candidates"]) == (4, 1)
    assert (report["num_candidates"], report["num_candidates_that_could_not_be_judged"]) == (7, 1)
    assert report["failed"] == {"prompt too long": 3}
    assert report["stages"][0]["tokens_per_second"] == 50.0


def test_report_has_auc_and_prm_accuracy_over_judged_candidates(finished):
    """Right rewards 2, 0, 2, 1, wrong 1, 3: of 8 pairs 2 are right way round and 1 is tied. Within p1 1, within p2 0.
    Positive reward = right holds for p1's first, p3's second and p4's: 3 of 6; `right` alone for 4 of 6."""
    report = report_of(finished[0])
    figures = report["auc"]["prm_sum"]
    assert figures["overall"] == 2.5 / 8
    assert (figures["within_problem"]["value"], figures["num_problems_with_both"], figures["num_pairs"]) == (0.5, 2, 2)
    assert report["prm_accuracy"]["accuracy"]["value"] == 0.5
    assert report["prm_accuracy"]["always_the_same"] == pytest.approx(2 / 3)


def test_rewards_with_and_without_the_reference_by_hand(tmp_path):
    """p1 in the order sampled: policy log-probs 2, -1 and 1, -1; the reference's -1, 0 and -1, -1; a step a token."""
    make_run(tmp_path)
    rewards = read_problems(StageFolder(tmp_path, "score"), 0)[0].rewards
    assert rewards["prm_without_reference_sum"].tolist() == [1.0, 0.0]
    assert rewards["prm_without_reference_min"].tolist() == [-1.0, -1.0]
    assert rewards["prm_with_reference_sum"].tolist() == [2.0, 2.0]
    assert rewards["prm_with_reference_min"].tolist() == [-1.0, 0.0]
    assert rewards["ref_logprob_sum"].tolist() == [-1.0, -2.0]
    assert rewards["ref_logprob_mean"].tolist() == [-0.5, -1.0]


@pytest.mark.parametrize(("with_reference", "shown"), [(True, "without"), (False, "with")])
def test_the_report_shows_the_other_kind_of_reward_beside_the_runs_own(tmp_path, with_reference, shown):
    run_stages(make_run(tmp_path, with_reference=with_reference))
    methods = [method for method in report_of(tmp_path)["accuracy"] if "_reference_" in method]
    assert methods == [f"prm_{shown}_reference_{how}" for how in ("sum", "mean", "min", "last")]
    assert f"PRM {shown} reference (min)" in page_of(tmp_path)
    assert (report_of(tmp_path)["prm_accuracy"] is not None) == with_reference


def test_examples_show_the_pick_of_the_report(tmp_path):
    """The highest reward is of a response that was cut off: it has no answer, so best-of-N does not pick it."""
    cut_off = [row("p1", 0, 9.0, False), row("p1", 1, 2.0, True, "1"), row("p1", 2, 1.0, False, "2")]
    run_stages(make_run(tmp_path, [cut_off], sizes=[1, 3]))
    assert picks_of(tmp_path)["p1", "prm_sum", 3]["accuracy"] == 1.0
    assert f"<h3>{KINDS['both_right']}</h3>" in page_of(tmp_path)


def test_steps_are_coloured_around_their_median_where_no_reward_is_above_0(tmp_path):
    low = [{**each, "step_rewards": [-1.0, -9.0]} for each in PARTS[0][:2]]
    run_stages(make_run(tmp_path, [low], with_reference=False))
    page = page_of(tmp_path)
    assert page.count('class="step up"') == page.count('class="step down"') == 2


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("prm_sum", "PRM best-of-N (sum)"),
        ("prm_prefix_min", "PRM best-of-N (prefix min)"),
        ("weighted_prefix_mean", "PRM-weighted vote (prefix mean)"),
        ("prm_without_reference_prefix_min", "PRM without reference (prefix min)"),
        ("ref_logprob_mean", "Untrained reference (mean)"),
        ("pass@1", "One sample (pass@1)"),
    ],
)
def test_people_read_names_of_methods(method, label):
    assert label_of(method) == label


def test_what_rounds_to_0_is_not_shown_below_it():
    difference = {"value": -0.0004, "low": -0.01, "high": -1e-5}
    assert points_with_interval(difference) == "+0.0 points [-1.0, +0.0]"


def test_headline_does_not_claim_what_the_intervals_do_not_show(finished):
    folder, (_, result) = finished
    assert "75.0 % of 4 test problems" in report_of(folder)["headline"]
    assert "not distinguishable from one sample (62.5 %)" in result.details["headline"]
    assert re.search(r"PRM best-of-N \(sum\) +62\.5 \[\S+, \S+\] +75\.0 \[", result.details["table"])


def test_page_is_one_file_with_everything_escaped(finished):
    folder, _ = finished
    page = (folder / "report" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 5 &lt; 6 &amp; more" in page
    assert "first &lt;b&gt;step&lt;/b&gt;" in page
    assert "<script" not in page and "<b>step" not in page
    assert not re.search(r"\b(src|href)=|url\(|@import|https?:", page)
    assert (folder / "report" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_rerank_goes_on_and_gives_the_same_picks(tmp_path):
    config, folder = make_run(tmp_path), StageFolder(tmp_path, "rerank")
    folder.begin({})
    rerank.run(config, folder)
    before = picks_of(tmp_path)
    folder.part_path(1).unlink()
    kept = folder.part_path(0).stat().st_mtime_ns
    assert rerank.run(config, folder).rows_out == len(before)
    assert picks_of(tmp_path) == before
    assert folder.part_path(0).stat().st_mtime_ns == kept


def test_a_reward_that_is_not_a_number_is_counted_and_never_picked(tmp_path):
    parts = [[row("p1", 0, 1.0, True, "1"), row("p1", 1, float("nan"), False, "2"), row("p1", 2, None, True, "1")]]
    found = survey(StageFolder(make_run(tmp_path, parts).run.dir, "score"))
    assert found.failed == {"reward is not a finite number": 1, "no reward": 1}
    assert found.num_candidates == {"p1": 1}


@pytest.mark.parametrize(
    ("parts", "sizes", "message"),
    [
        ([[row("p9", 0, 1.0, True, "1", split="train")]], [1], "no scored candidate of the test split"),
        ([[row("p1", 0, **FAILED)]], [1], "failed: 1 prompt too long"),
        ([[row("p1", 0, 1.0, True, "1")]], [2, 4], r"rerank.sizes \[2, 4\] are all above the 1 candidates"),
        ([[row("p1", 0, 1.0, True, "1")], [row("p1", 1, 1.0, True, "1")]], [1], "problem p1 is in part 1"),
    ],
)
def test_nothing_to_rerank_is_said_in_one_line(tmp_path, parts, sizes, message):
    config = make_run(tmp_path, parts, sizes=sizes)
    with pytest.raises(UserError, match=message):
        rerank.run(config, StageFolder(tmp_path, "rerank"))


def test_picks_of_other_scores_are_refused(tmp_path):
    config, folder = make_run(tmp_path), StageFolder(tmp_path, "rerank")
    folder.begin({})
    rerank.run(config, folder)
    StageFolder(tmp_path, "score").write_part(2, [row("p7", 0, 1.0, True, "1")])
    with pytest.raises(UserError, match="--fresh rerank"):
        evaluate.run(config, StageFolder(tmp_path, "evaluate"))


def test_the_page_shows_lengths_by_label_and_what_training_left_out(tmp_path):
    summary = {"num": 1234, "mean": 20.25, "p10": 11.0, "median": 19.0, "p90": 33.0, "max": 40}
    lengths = {"right": summary, "wrong": summary, "right_is_longer": {"overall": 0.347, "within_problem": None}}
    config, train = make_run(tmp_path), StageFolder(tmp_path, "train")
    train.begin({})
    details = {"response_tokens": {"train": lengths, "test": lengths}, "selection": {"left_out": {"ngram_training": 7}}}
    train.finish({"stage": "train", "details": details})
    run_stages(config)
    assert report_of(tmp_path)["response_tokens"]["test"] == lengths
    page = re.sub(r"\s+", " ", page_of(tmp_path))
    assert "<td>Held out, wrong</td><td>1,234</td><td>20.2</td><td>11</td><td>19</td><td>33</td><td>40</td>" in page
    assert "<b>34.7 %</b> of the time among the held-out ones (n/a within a problem)." in page
    assert "not selected: 7 \N{MULTIPLICATION SIGN} ngram_training" in page


def test_page_is_made_when_every_candidate_is_right_or_every_one_wrong(tmp_path):
    parts = [[row("p1", 0, 1.0, False, "2"), row("p1", 1, 0.5, False, "3")]]
    run_stages(make_run(tmp_path, parts))
    report = report_of(tmp_path)
    assert report["auc"]["prm_sum"]["overall"] is None
    assert report["against_pass@1"]["prm_sum"]["2"]["ratio"]["value"] is None
    assert "nothing to choose" in (tmp_path / "report" / "report.html").read_text()
