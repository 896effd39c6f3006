"""The comparison of runs that are small enough to work out by hand, through the real rerank and evaluate stages.

Problems p0 .. p3 have a right and a wrong candidate each. A run picks right where its first reward is the higher one:
`good` in all four, `bad` in one (seed 0) and two (seed 1).
"""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from prm_ray.cli import main
from prm_ray.compare.charts import CHARTS
from prm_ray.compare.compare import compare_runs, compare_words
from prm_ray.compare.scaling import scaling_curves
from prm_ray.config import RunConfig
from prm_ray.core.rewards import AGGREGATIONS
from prm_ray.errors import UserError
from prm_ray.stages import evaluate, rerank
from prm_ray.stages.ink import LIGHT
from prm_ray.tables import StageFolder

EVIL = "<script>alert(1)</script>"


def make_run(
    folder: Path, right: str, problems: str = "0123", seed: int = 0, score: dict[str, Any] | None = None, **train: Any
) -> Path:
    """A finished run that ranks the right candidate first in the problems whose digits are in `right`."""
    sections = {"import": {"source": "elsewhere.jsonl"}, "train": {"seed": seed, **train}, "score": score or {}}
    sections |= {
        "evaluate": {"aggregation": "sum"},
        "rerank": {"sizes": [1, 2], "aggregations": ["sum"]},
        "run": {"dir": str(folder)},
    }
    config = RunConfig.model_validate(sections)
    scores = StageFolder(folder, "score")
    scores.begin({})
    rows = [
        row(problem, index, 2.0 if (index == 0) == (problem in right) else 1.0)
        for problem in problems
        for index in (0, 1)
    ]
    scores.write_part(0, rows)
    scores.finish({"stage": "score", "seconds": 1.0})
    for stage, module in (("rerank", rerank), ("evaluate", evaluate)):
        made = StageFolder(folder, stage)
        made.begin({})
        module.run(config, made)
        made.finish({"stage": stage})
    return folder


def row(problem: str, index: int, reward: float) -> dict[str, Any]:
    """The right candidate comes first and is twice as long."""
    length = 4 - 2 * index
    row = {"prompt_id": f"p{problem}", "split": "test", "problem": f"{EVIL} {problem}", "gold_answer": "1"}
    row |= {"sample_index": index, "answer": str(index + 1), "correct": index == 0, "text": "one\n\ntwo"}
    row |= {"response_tokens": [7] * length, "step_ends": [1, length], "step_rewards": [reward - 1.0, 1.0]}
    row |= {"ref_logprobs": [-1.0] * length, "policy_logprobs": [-1.0] * length}
    return row | {f"reward_{how}": reward for how in AGGREGATIONS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    runs = tmp_path_factory.mktemp("runs")
    return [
        make_run(runs / "good-0", "0123"),
        make_run(runs / "bad-0", "0", objective="dpo"),
        make_run(runs / "bad-1", "02", seed=1, objective="dpo"),
    ]


@pytest.fixture(scope="module")
def compared(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    page = compare_runs(folders, tmp_path_factory.mktemp("out"), title="Good and bad", notes=["One run is missing."])
    return {"page": page, "data": json.loads((page.parent / "comparison.json").read_text())}


def test_seeds_are_pooled_and_each_stands_beside_the_mean(compared: dict[str, Any]):
    good, bad = compared["data"]["methods"]
    assert (good["name"], good["seeds"], bad["name"], bad["seeds"]) == ("good", [0], "bad", [0, 1])
    assert good["accuracy"]["2"]["value"] == 1.0
    assert bad["accuracy"]["2"]["value"] == pytest.approx((0.25 + 0.5) / 2)
    assert bad["accuracy"]["2"]["by_seed"] == [0.25, 0.5]
    assert good["accuracy"]["1"]["value"] == bad["accuracy"]["1"]["value"] == 0.5


def test_differences_are_paired_over_the_problems(compared: dict[str, Any]):
    """p0 is the only problem without a difference, so no resample can be above 0; p2 has half of one."""
    good, bad = compared["data"]["methods"]
    assert good["against_first"] == {"value": 0.0, "low": 0.0, "high": 0.0, "by_seed": [0.0]}
    difference = bad["against_first"]
    assert difference["value"] == pytest.approx(-0.625) and difference["low"] == pytest.approx(-1.0)
    assert -0.5 < difference["high"] <= 0.0
    assert bad["against_majority"]["value"] == pytest.approx(0.375 - 1.0)  # a tie of votes goes to the first


def test_ranking_and_length_are_of_the_rewards(compared: dict[str, Any]):
    good, bad = compared["data"]["methods"]
    assert good["auc_within"]["value"] == 1.0 and bad["auc_within"]["value"] == pytest.approx(0.375)
    assert good["length"]["right"]["correlation"] is None  # all of one length
    assert good["first_wrong_step"] is None
    assert bad["settings"] == {"train.objective": "dpo"}


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]


def test_the_page_is_whole_in_itself_and_has_every_method_note_and_section(compared: dict[str, Any]):
    text = compared["page"].read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "&lt;script&gt;" in text
    assert page.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert "prefers-color-scheme: dark" in text
    for words in (
        "Good and bad",
        "One run is missing.",
        "37.5",
        "seeds 25.0 to 50.0",
        'train.objective = "dpo"',
    ):
        assert words in text, words
    assert text.count("<h2>") >= 7 and "Do the rewards just follow length?" in text


def test_the_table_to_paste_has_a_line_a_method_and_the_ways_without_training(compared: dict[str, Any]):
    lines = (compared["page"].parent / "comparison.md").read_text().splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert cells["bad"][1].startswith("37.5 [") and cells["bad"][2].startswith("-62.5 [")
    assert cells["good"][2] == "\N{EN DASH}", "the first method is not compared with itself"
    assert cells["Majority vote"][1].startswith("100.0 ") and cells["One sample"][1].startswith("50.0 ")
    assert len({len(row) for row in cells.values()}) == 1


def test_pictures_are_written_beside_the_page(compared: dict[str, Any]):
    pictures = {path.name for path in compared["page"].parent.glob("*.png")}
    assert pictures == {"accuracy.png", "candidates.png", "uses.png", "length.png"}  # no cost, no amounts


@pytest.mark.parametrize("name", ["accuracy", "uses", "cost"])
def test_long_names_and_many_methods_cut_no_words_off_a_picture(name: str, compared: dict[str, Any]):
    good, _ = compared["data"]["methods"]
    found = good["auc_within"] | {"chance": 0.3}
    costs = {"runs": [{"flops": {"total": 5.6e13}}], "first_wrong_step": found}
    label = "A method whose name is long, as it has its settings in it"
    methods = [good | costs | {"name": f"m{index}", "label": f"{label} ({index})"} for index in range(20)]
    methods[3] |= {"label": "demo", "runs": [{"flops": None}]}
    figure = CHARTS[name](compared["data"] | {"methods": methods}, LIGHT)
    assert figure is not None
    figure.canvas.draw()
    texts = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text) if text.get_text()}
    outside = [text for text, box in texts.items() if box.x0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1]
    assert len(texts) > 20 and not outside
    assert ("no cost known: demo" in texts) == (name == "cost")


def test_only_common_problems_are_compared_and_that_is_said(folders: list[Path], tmp_path: Path):
    other = make_run(tmp_path / "other", "01", problems="0189")
    data = json.loads((compare_runs([folders[0], other], tmp_path / "out").parent / "comparison.json").read_text())
    assert data["num_problems"] == 2 and data["methods"][1]["accuracy"]["2"]["value"] == 1.0
    assert "(4 of them): all figures are of the 2 that every run has." in data["notes"][0]


def test_runs_without_a_common_problem_are_refused(folders: list[Path], tmp_path: Path):
    other = make_run(tmp_path / "other", "8", problems="89")
    with pytest.raises(UserError, match=r"good-0' \(4 held-out problems\) and .*other' \(2\) have no held-out problem"):
        compare_runs([folders[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_one_name_that_differ_in_more_than_the_seed_are_not_pooled(folders: list[Path], tmp_path: Path):
    other = make_run(tmp_path / "good-1", "01", seed=1, beta=0.7)
    with pytest.raises(UserError, match=r"are both 'good', but train\.beta is 0\.05 in one and 0\.7 in the other"):
        compare_runs([folders[0], other], tmp_path / "out")
    page = compare_words([str(folders[0]), f"warm={other}"], str(tmp_path / "out"), ["warm"])
    assert [method["name"] for method in json.loads((page.parent / "comparison.json").read_text())["methods"]] == [
        "good",
        "warm",
    ]


def test_a_head_and_a_published_model_are_compared_as_what_they_are(tmp_path: Path):
    first = make_run(tmp_path / "first", "0", beta=0.3, objective="nca", max_pairs=4)
    head = make_run(tmp_path / "head", "0", reward="value_head")
    published = make_run(tmp_path / "published", "0", score={"model": "elsewhere", "style": "qwen_prm"})
    page = compare_runs([first, head, published], tmp_path / "out")
    _, of_head, of_published = json.loads((page.parent / "comparison.json").read_text())["methods"]
    assert (of_head["reward_kind"], of_published["reward_kind"]) == ("value_head", "qwen_prm")
    assert of_head["settings"] == {"train.objective": "ce", "train.reward": "value_head"}
    assert of_published["settings"] == {"score.model": "elsewhere", "score.style": "qwen_prm"}
    assert of_head["picked_by"] == of_published["picked_by"] == {}


def test_groups_of_an_experiment_keep_their_headings(folders: list[Path], tmp_path: Path):
    about = {"label": "A", "seed": 0, "name": "a", "group": "free"}
    for name, more in (("new", {"heading": "Without a reference"}), ("old", {"group": "objective"})):
        (make_run(tmp_path / name, "0") / "variant.json").write_text(json.dumps(about | {"name": name} | more))
    page = compare_runs([tmp_path / "new", tmp_path / "old", folders[0]], tmp_path / "out")
    lines = (page.parent / "comparison.md").read_text().splitlines()
    headings = [line.strip("| *") for line in lines if line.startswith("| **")]
    assert headings == ["Without a reference", "objective", "Other runs"]


def test_the_same_seed_twice_is_refused(folders: list[Path], tmp_path: Path):
    with pytest.raises(UserError, match=r"are both 'good' with seed 0: give one another name, NAME=FOLDER"):
        compare_runs([folders[0], folders[0]], tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "run folder 'nowhere' does not exist"),
        (["{run}", "--show", "best"], "--show 'best' must be one of good"),
        (["{empty}"], "is no run folder: it has none of the stages' folders, such as scores/"),
        (["{begun}"], "scores' is not finished; run the score stage first"),
        (["=nowhere"], "'=nowhere' must be a run's folder or NAME=FOLDER, with a name and a folder"),
        (["a="], "'a=' must be a run's folder or NAME=FOLDER"),
        (["nowhere", "--out", "{file}"], "must be a folder to write to, but '{file}' is a file"),
        (["nowhere", "--out", "{file}/out"], "must be a folder to write to, but '{file}' is a file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    words: list[str], message: str, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {name: tmp_path / name for name in ("empty", "begun", "file")} | {"run": folders[0]}
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "responses").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "--out", str(tmp_path / "out"), *(word.format(**places) for word in words)])
    assert exit_info.value.code == 2
    assert message.format(**places) in capsys.readouterr().err.splitlines()[-1]


class Settings:
    def __init__(self, name: str, **settings: Any):
        self.name, self.settings = name, settings


def test_methods_that_differ_in_one_amount_alone_make_a_curve():
    def method(name: str, num: int | None, lr: float = 1.0, skips: bool = True) -> Any:
        uniform = {"train.skip_uniform_prompts": skips}
        return Settings(name, **{"select.num_responses": num, "generate.num_samples": 8, "train.lr": lr} | uniform)

    methods = [method("four", 4), method("all", None), method("other", 2, lr=2.0), method("one", 1, skips=False)]
    (curve,) = scaling_curves(methods)
    assert curve["points"] == [(1.0, "one"), (4.0, "four"), (8.0, "all")]
    assert curve["axis"] == "Responses a problem"
