"""The report of a search on a small table whose every figure can be worked out by hand.

Best-of-N has two responses a problem, ten tokens each; `beam` of size 4 takes 15 tokens a problem.
A vote is the majority's; the weighted one is as the best reward:
  p1  values 2, 1  right, wrong   one sample .5  best 1  vote 1 (tie)   beam: best right, vote right
  p2  values 0, 3  right, wrong   one sample .5  best 0  vote 1 (tie)   beam: best right, vote wrong
  p3  both have no reward         one sample  0  best 0  vote 0         beam: nothing ended
  p9  could not be asked: in no figure
"""

import json
import re
from itertools import pairwise

import pytest

from prm_ray.models import encode_response, load_tokenizer
from prm_ray.schemas import SCHEMAS
from prm_ray.search.picking import PICKS
from prm_ray.stages.searching.examples import grow_tree
from prm_ray.stages.searching.plots import accuracy_chart, token_ticks
from prm_ray.stages.searching.report import write_report
from prm_ray.stages.searching.utilisation import count_ticks, utilisation_chart
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config

EVIL = "<script>alert(1)</script> 5 < 6"
USAGE = {
    "generators": {"busy": 0.9, "deaths": 2, "workers": 3, "over_time": [[0.0, 1.0, 12.0], [0.5, 0.8, 3.0]]},
    "scorers": {"busy": 0.35, "deaths": 0, "workers": 1, "over_time": [[0.5, 0.2, 0.0], [1.0, 0.5, 1.0]]},
}


def row(prompt_id, strategy, size, candidate, **more):
    made = dict.fromkeys(SCHEMAS["search"].names)
    made |= {"prompt_id": prompt_id, "problem": f"{EVIL} {prompt_id}", "gold_answer": "1", "parent": -1}
    made |= {"strategy": strategy, "size": size, "candidate": candidate, "num_sampled": 10, "competes": False}
    return made | more


def response(prompt_id, strategy, size, candidate, *said, **more):
    """`said`: its value, its answer, and initials of the ways of picking that take it, if any do."""
    value, answer, picks = (*said, "")[:3]
    ended = {"value": value, "step_rewards": [value], "answer": answer, "correct": answer == "1", "competes": True}
    ended |= {"finish_reason": "stop", "text": f"so <b>{answer}</b>", "tokens": [ord(answer)]}
    picked_by = [how for how in PICKS if how[0] in picks]
    return row(prompt_id, strategy, size, candidate, **ended, picked_by=picked_by) | more


def failed(prompt_id, strategy, size, candidate, **more):
    return row(prompt_id, strategy, size, candidate, error="no_reward: the reward is nan", **more)


def not_asked(strategy, size):
    return row("p9", strategy, size, None, parent=None, num_sampled=0, error="prompt too long: 2000 tokens")


BEST_OF_N = [
    response("p2", "best_of_n", 2, 0, 0.0, "1", "m"),
    response("p2", "best_of_n", 2, 1, 3.0, "2", "bw"),
    response("p1", "best_of_n", 2, 0, 2.0, "1", "bmw"),
    response("p1", "best_of_n", 2, 1, 1.0, "2"),
    failed("p3", "best_of_n", 2, 0, finish_reason="stop"),
    failed("p3", "best_of_n", 2, 1, finish_reason="stop"),
    not_asked("best_of_n", 2),
]
BEAM = [
    row("p1", "beam", 4, 0, num_sampled=5, value=0.5, tokens=[65, 10]),
    response("p1", "beam", 4, 1, 2.0, "1", "bmw", parent=0),
    row("p2", "beam", 4, 0, num_sampled=5, value=0.5, tokens=[65, 10]),
    response("p2", "beam", 4, 1, 2.0, "1", "b", parent=0, num_sampled=5),
    response("p2", "beam", 4, 2, 1.0, "2", "mw", parent=0, num_sampled=5),
    row("p3", "beam", 4, 0, num_sampled=15, value=0.5, tokens=[65, 10]),
    not_asked("beam", 4),
]


@pytest.fixture
def report_of(tiny_model, tmp_path):
    """Writes the report of a table; returns its figures and its page."""

    def write(rows, usage=None, **search):
        config = tiny_config(tmp_path, tiny_model, search={"strategies": ["best_of_n", "beam"], "sizes": [4]} | search)
        folder = StageFolder(tmp_path, "search")
        folder.path.mkdir()
        folder.write_part(0, rows)
        if usage is not None:
            (folder.path / "usage.json").write_text(json.dumps(usage))
        write_report(config, folder)
        page = (folder.path / "report.html").read_text()
        return json.loads((folder.path / "report.json").read_text()), re.sub(r"\s+", " ", page)

    return write


def arm_of(report, strategy):
    (arm,) = [arm for arm in report["arms"] if arm["strategy"] == strategy]
    return arm


def values(figures):
    return {how: each["value"] if isinstance(each, dict) else each for how, each in figures.items()}


def test_a_problem_without_an_answer_is_wrong_and_one_that_was_not_asked_is_left_out(report_of):
    report, page = report_of([*BEST_OF_N, *BEAM])
    assert (report["num_problems"], report["num_problems_not_asked"], report["num_candidates"]) == (3, 1, 12)
    assert report["failed"] == {"no_reward": 2, "prompt too long": 2}
    beam = arm_of(report, "beam")
    assert values(beam["accuracy"]) == pytest.approx({"best": 2 / 3, "weighted_vote": 1 / 3, "majority": 1 / 3})
    assert (beam["problems_without_answer"], beam["tokens_per_problem"], beam["responses_per_problem"]) == (1, 15, 1)
    assert "1 problems could not be asked" in page and "2 &times; no_reward" in page


def test_best_of_n_at_every_n_is_on_the_same_problems_as_the_searches(report_of):
    """One sample: (.5 + .5 + 0) / 3; of both responses: best and weighted vote 1 / 3, majority and oracle 2 / 3, as
    the arm itself has it."""
    report, _ = report_of([*BEST_OF_N, *BEAM])
    one, two = report["best_of_n"]
    assert (one["n"], one["tokens_per_problem"], two["n"], two["tokens_per_problem"]) == (1, 10, 2, 20)
    assert values(one["accuracy"]) == pytest.approx(dict.fromkeys([*PICKS, "oracle"], 1 / 3))
    thirds = {"best": 1 / 3, "weighted_vote": 1 / 3, "majority": 2 / 3, "oracle": 2 / 3}
    assert values(two["accuracy"]) == pytest.approx(thirds)
    assert values(arm_of(report, "best_of_n")["accuracy"]) == pytest.approx({how: thirds[how] for how in PICKS})


def test_a_search_is_compared_with_best_of_n_at_its_own_tokens(report_of):
    """15 of 20 tokens are 1.5 of 2 responses, half-way between 1 and 2: best (1/3 + 1/3) / 2 = 1/3, majority (1/3 +
    2/3) / 2 = 1/2. So beam is 2/3 - 1/3 above the one and 1/3 - 1/2 from the other."""
    report, page = report_of([*BEST_OF_N, *BEAM])
    against = arm_of(report, "beam")["against_best_of_n"]
    assert (against["n"], against["is_beyond"], against["tokens_per_problem"]) == (1.5, False, 15)
    assert (against["accuracy"]["best"], against["accuracy"]["majority"]) == pytest.approx((1 / 3, 1 / 2))
    assert values(against["difference"])["best"] == pytest.approx(1 / 3)
    assert values(against["difference"])["majority"] == pytest.approx(-1 / 6)
    assert values(arm_of(report, "beam")["against_one_sample"])["best"] == pytest.approx(1 / 3)
    assert "of the same tokens (33.3 %)" in report["headline"] and "<td>1.5</td>" in page


def test_a_search_that_took_more_tokens_than_all_responses_is_said_to(report_of):
    report, page = report_of([*BEST_OF_N, *({**each, "num_sampled": 3 * each["num_sampled"]} for each in BEAM)])
    against = arm_of(report, "beam")["against_best_of_n"]
    assert (against["n"], against["is_beyond"], against["tokens_per_problem"]) == (2.0, True, 20)
    assert "best of 2 of fewer tokens" in report["headline"] and "all 2<small>20 tokens</small>" in page


def test_the_headline_claims_no_difference_that_the_interval_does_not_show(report_of):
    report, page = report_of([*BEST_OF_N, *BEAM])
    assert report["headline"].startswith("Beam search (4), the highest of 2 searches, answers 66.7 % of 3 held-out")
    assert "not distinguishable from best of 1.5 of the same tokens" in report["headline"]
    assert "With the same tokens the search is not to be told apart from best-of-N." in page
    assert "3 problems are few" in page


def test_without_best_of_n_there_is_nothing_to_compare_with(report_of):
    report, page = report_of(BEAM, strategies=["beam"])
    assert report["best_of_n"] == [] and "against_best_of_n" not in arm_of(report, "beam")
    assert "there is nothing to compare it with" in report["headline"] and "points above that" not in page


def test_tokens_saved_by_adaptive_n_against_as_many_responses_for_everyone(report_of):
    """10, 10 and 5 tokens where two responses are 20 a problem: 25 of 60 are taken, 7 / 12 saved. It is right in p1
    alone, as best of two is."""
    adaptive = [
        response("p1", "adaptive", 2, 0, 2.0, "1", "bmw"),
        response("p2", "adaptive", 2, 0, 3.0, "2", "bmw"),
        failed("p3", "adaptive", 2, 0, num_sampled=5),
    ]
    report, page = report_of([*BEST_OF_N, *adaptive], strategies=["best_of_n", "adaptive"], sizes=[2])
    fixed = arm_of(report, "adaptive")["against_fixed_n"]
    assert fixed["tokens_saved"]["value"] == pytest.approx(7 / 12) and fixed["tokens_per_problem"] == 20
    assert fixed["tokens_saved"]["low"] < 7 / 12 < fixed["tokens_saved"]["high"]
    assert values(fixed["difference"])["best"] == 0 and values(fixed["difference"])["majority"] == pytest.approx(-1 / 3)
    assert "Tokens saved, accuracy paid" in page and "58.3<small>" in page


def test_one_problem_is_enough_for_a_page(report_of):
    report, page = report_of([each for each in [*BEST_OF_N, *BEAM] if each["prompt_id"] == "p1"])
    assert report["num_problems"] == 1 and "1 problems are few" in page and "<h3>The pick is right</h3>" in page


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        ([not_asked("best_of_n", 2), not_asked("beam", 4)], "none of 1 problems could be asked"),
        ([failed("p1", strategy, 4, 0, num_sampled=0) for strategy in ("best_of_n", "beam")], "answers 0.0 % of 1"),
    ],
)
def test_a_search_in_which_all_failed_has_a_page_that_says_so(report_of, rows, headline):
    report, page = report_of(rows)
    assert headline in report["headline"] and headline in page
    assert report["best_of_n"] == []


def test_the_page_shows_how_busy_both_pools_were(report_of):
    report, page = report_of(BEST_OF_N, {"done_before": 0, "pools": USAGE})
    assert report["usage"]["pools"] == USAGE and "This start only" not in page
    assert re.search(r"generators</td><td>3</td><td>90.0 %</td><td>7.5</td><td>12.0</td><td>2</td>", page)
    drawn = utilisation_chart(report)
    first = drawn["panels"][0]["lines"][0]["path"].split()
    assert len(first) == 4 and first[0].startswith(f"{drawn['left']}.0,")


def test_the_page_of_a_resumed_search_says_that_it_saw_only_its_last_start(report_of):
    _, page = report_of(BEST_OF_N, {"done_before": 7, "pools": USAGE})
    assert "This start only:" in page and "the 7 searches of earlier starts" in page


def test_a_search_that_was_over_at_once_has_a_page_too(report_of):
    short = {name: pool | {"over_time": [[0.0, 1.0, 0]]} for name, pool in USAGE.items()}
    _, page = report_of(BEST_OF_N, {"done_before": 5, "pools": short})
    assert "This start only" in page


def test_a_page_without_figures_of_the_pools_says_that_they_are_not_known(report_of, tmp_path):
    _, page = report_of(BEST_OF_N)
    assert "Not known" in page and not (tmp_path / "search" / "utilisation.png").exists()


def test_the_page_is_one_file_with_everything_escaped(report_of, tmp_path):
    _, page = report_of([*BEST_OF_N, *BEAM], {"done_before": 0, "pools": USAGE})
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 5 &lt; 6" in page and "<script" not in page
    assert not re.search(r"\b(src|href)=|url\(|@import|https?:", page)
    for name in ("accuracy", "utilisation"):
        assert (tmp_path / "search" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_examples_read_the_steps_with_the_generators_tokenizer(report_of, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    step = {**BEAM[0], "tokens": encode_response(tokenizer, "1+1\n")[:-1]}
    whole = {**BEAM[1], "tokens": encode_response(tokenizer, "so 2")}
    _, page = report_of([step, whole])
    first = page.index("went on</i><span>1+1</span>")
    assert first < page.index("<span>so 2</span>", first)


def test_a_tree_keeps_what_leads_to_the_pick_and_counts_what_it_hides():
    """Two equal first steps, one of which went on and won; five others of one token were dropped, two of them shown."""
    rows = [row("p1", "beam", 4, 0, value=-9.0, tokens=[65]), row("p1", "beam", 4, 1, value=-9.0, tokens=[65])]
    rows += [row("p1", "beam", 4, 2 + at, value=float(-at), tokens=[66 + at]) for at in range(5)]
    rows += [response("p1", "beam", 4, 7, 1.0, "1", "b", parent=1)]
    tree = grow_tree(rows, "best", lambda tokens: "".join(map(chr, tokens)))
    first, *others = tree["children"]
    assert (first["text"], first["became"], first["copies"], first["leads"]) == ("A", "on", 2, True)
    assert (first["children"][0]["text"], first["children"][0]["became"]) == ("1", "picked")
    assert [(each["text"], each["became"]) for each in others] == [("B", "dropped"), ("C", "dropped"), ("D", "dropped")]
    assert tree["hidden"] == {"num": 2, "low": -4.0, "high": -3.0}


def test_end_labels_of_many_strategies_do_not_touch():
    names = ["beam", "dvts", "lookahead", "particles", "mcts", "adaptive"]
    figures = {how: {"value": 0.5, "low": 0.4, "high": 0.6} for how in [*PICKS, "oracle"]}
    arms = [
        {"strategy": name, "size": size, "tokens_per_problem": 9.0 * size, "accuracy": figures}
        for name in names
        for size in (4, 8, 16, 32)
    ]
    curve = [{"n": n, "tokens_per_problem": 10.0 * n, "accuracy": figures} for n in (1, 32)]
    chart = accuracy_chart({"pick": "best", "best_of_n": curve, "arms": arms})
    places = sorted(line["label_y"] for line in chart["lines"])
    assert len(places) == 9 and min(b - a for a, b in pairwise(places)) >= 17
    assert len({line["css"] for line in chart["lines"] if line["css"] != "soft"}) == 7


@pytest.mark.parametrize(("low", "high", "ticks"), [(12, 90, [10, 20, 50, 100]), (20, 20, [20, 50, 100, 200])])
def test_tokens_have_round_ticks_around_all_points(low, high, ticks):
    assert token_ticks(low, high) == ticks


@pytest.mark.parametrize(("highest", "ticks"), [(0.0, [0]), (7.0, [0, 2, 4, 6, 8]), (79.0, [0, 20, 40, 60, 80])])
def test_counts_have_round_ticks_from_zero(highest, ticks):
    assert count_ticks(highest, 4)[: len(ticks)] == ticks
