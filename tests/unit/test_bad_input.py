"""Bad input ends a run with one clear line before Ray starts and before any stage has worked."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_origin

import pytest
from safetensors.torch import load_file, save_file

from prm_ray.config import RunConfig, load_config, parse_config
from prm_ray.errors import UserError
from prm_ray.models import load_model, write_prm_json
from prm_ray.overrides import TABLES
from prm_ray.rewardmodels import load_with_value_head
from prm_ray.stages import pipeline
from prm_ray.stages.trainingsets import check_labels, selected_responses, store_rows, training_data
from prm_ray.tables import StageFolder
from tests.tables_by_hand import mark_done, tiny_config, write_reference_table
from tests.tiny import save_tiny_model

GOOD = [{"problem": "1+1", "answer": "2"}, {"problem": "1+2", "answer": "3"}]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(tmp_path: Path, model: str, **sections: dict[str, Any]) -> str:
    """The one line a run answers with."""
    import ray

    was_running = ray.is_initialized()
    with pytest.raises(UserError) as caught:
        pipeline.run_all(tiny_config(tmp_path / "run", model, warmup={"enabled": False}, **sections))
    assert ray.is_initialized() == was_running
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "file '{path}' does not exist"),
        ("p.txt", "x", "source '{path}' must be a .jsonl or .parquet file"),
        ("p.jsonl", "", "'{path}' holds no rows"),
        ("p.jsonl", lines({"question": "1+1", "answer": "2"}), "has no field 'problem'; it has answer, question"),
        ("p.jsonl", lines(*GOOD, GOOD[0]), "holds the same problem in rows 1 and 3"),
        ("p.jsonl", lines(*GOOD) + '{"problem": ', "line 3 of '{path}' is not valid JSON"),
        ("p.parquet", "PAR1 and then nothing", "'{path}' is not a readable Parquet file"),
    ],
)
def test_problem_files_that_cannot_be_used(
    tmp_path: Path, tiny_model: str, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert message.format(path=path) in refused(tmp_path, tiny_model, problems={"train": str(path)})


def test_a_problem_in_both_splits(tmp_path: Path, tiny_model: str) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(lines(*GOOD))
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    assert "2 test problems are training problems too" in refused(tmp_path, tiny_model, problems=sources)


@pytest.mark.parametrize(
    ("lost", "message"), [("tokenizer*", "has no tokenizer that loads"), ("chat_template*", "has no chat template")]
)
def test_model_folders_that_cannot_be_used(tmp_path: Path, tiny_model: str, lost: str, message: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for path in model.glob(lost):
        path.unlink()
    assert message in refused(tmp_path, str(model))


@pytest.mark.parametrize(
    ("start", "reward", "message"),
    [
        ("/no/where", "log_ratio", "'/no/where' does not exist"),
        ("{head}", "log_ratio", "has the reward 'value_head'; train.reward is 'log_ratio'"),
    ],
)
def test_a_start_that_cannot_be_one(tmp_path: Path, tiny_model: str, start: str, reward: str, message: str) -> None:
    head = tmp_path / "head"
    load_with_value_head(tiny_model, "float32", seed=0).save_pretrained(head)
    write_prm_json(head, {"reward": "value_head"})
    train = {"start": start.format(head=head), "reward": reward}
    assert message in refused(tmp_path, tiny_model, train=train)


def test_a_model_that_lacks_weights_is_not_filled_up_with_random_ones(tmp_path: Path, tiny_model: str) -> None:
    load_with_value_head(tiny_model, "float32", seed=0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no whole language model: its files lack 'lm_head.weight'"):
        load_model(str(tmp_path), "float32")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no whole model: its files lack 'model.layers.0.mlp.up_proj.weight'"):
        load_with_value_head(str(tmp_path), "float32", seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"beta": float("inf")}}, "train.beta: Input should be a finite number"),
        ({"select": {"mix_share": float("inf")}}, "select.mix_share: Input should be a finite number"),
        ({"generate": {"temperature": float("nan")}}, "generate.temperature: Input should be a finite number"),
    ],
)
def test_a_number_must_be_finite(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(settings)


@pytest.mark.parametrize("stage", ["warmup", "train"])
def test_workers_that_train_together_cannot_share_a_gpu(stage: str) -> None:
    with pytest.raises(UserError, match=f"{stage}: gpus_per_worker 0.5 must be 1 with num_workers 2"):
        parse_config({stage: {"num_workers": 2, "gpus_per_worker": 0.5}})
    parse_config({stage: {"gpus_per_worker": 0.5}, "score": {"num_workers": 2, "gpus_per_worker": 0.5}})


@pytest.mark.parametrize(
    ("train", "select", "message"),
    [
        ({"validation_fraction": 0.99}, {}, "train.validation_fraction 0.99 holds out every problem"),
        ({"objective": "dpo"}, {"num_responses": 1}, "no training problem has responses of both kinds"),
        ({"objective": "kto"}, {}, "behind another prompt, and there are none: it takes those of the same part"),
    ],
)
def test_training_sets_that_hold_nothing_to_learn(
    tmp_path: Path, tiny_model: str, train: dict[str, Any], select: dict[str, Any], message: str
) -> None:
    config = tiny_config(tmp_path / "run", tiny_model, train=train, select=select, reference={"mismatched": 1})
    write_reference_table(config)
    mark_done(config, ("generate", "label", "reference"))
    folder = StageFolder(config.run.dir, "train")
    folder.path.mkdir()
    data = training_data(config, store_rows(selected_responses(config).table, config, folder))
    with pytest.raises(UserError, match=message):
        check_labels(data, config)


def test_a_reference_that_reads_other_token_ids(tmp_path: Path, tiny_model: str) -> None:
    other = save_tiny_model(tmp_path / "other", extra_token="<|more|>")
    assert "have different vocabularies" in refused(tmp_path, tiny_model, reference={"model": other})


def test_a_judge_that_does_not_exist(tmp_path: Path, tiny_model: str) -> None:
    assert "no_such_module" in refused(tmp_path, tiny_model, label={"judge": "no_such_module:judge"})


def test_an_import_that_does_not_exist(tmp_path: Path, tiny_model: str) -> None:
    assert "nowhere.jsonl" in refused(tmp_path, tiny_model, **{"import": {"source": "nowhere.jsonl"}})


def test_a_table_is_set_name_by_name_on_the_command_line(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("[serve]\nmodels = { first = 'runs/a', gone = 'runs/b' }\n")
    words = ["serve.models.qwen-2.5=runs/c", "serve.models.gone=", "import.fields.text=solution"]
    config = load_config(path, [*words, "generate.engine_options.max_num_seqs=8"])
    assert config.serve.models == {"first": Path("runs/a").absolute(), "qwen-2.5": Path("runs/c").absolute()}
    assert config.import_.fields == {"text": "solution"} and config.generate.engine_options == {"max_num_seqs": 8}
    tables = {
        f"{section.alias or name}.{key}"
        for name, section in RunConfig.model_fields.items()
        for key, field in getattr(section.annotation, "model_fields", {}).items()
        if get_origin(field.annotation) is dict
    }
    assert tables == set(TABLES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.beta.x=1", "train.beta is no table; section.key.name=value is for generate.engine_options"),
        ("serve.models.=runs/c", "must have the form section.key=value"),
        ("serve.models.second", "must have the form section.key=value"),
        ("import.fields.text=1", "import.fields.text: Input should be a valid string (got 1)"),
        ("run.dir=", "override 'run.dir=' is empty: run.dir must be a folder, or left out for the file's own"),
        ("run.dir= ", "override 'run.dir= ' is empty: run.dir must be a folder"),
        ("run.dir=/x/..", "run.dir: must be a folder of its own, not '/': its stages are folders in it"),
        ("run.dir=/", "run.dir: must be a folder of its own, not '/'"),
        ("run.dir=//", "run.dir: must be a folder of its own, not '/'"),
        ("run.dir=''", "run.dir: must be a path, or an address such as s3://bucket/folder (got '')"),
    ],
)
def test_a_wrong_word_is_answered_with_what_it_must_be(tmp_path: Path, override: str, message: str):
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(tmp_path / "run.toml", [override])


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("train", "gpus_per_worker"),
        ("score", "gpus_per_worker"),
        ("search", "gpus_per_scorer"),
        ("serve", "gpus_per_replica"),
    ],
)
def test_a_process_with_a_model_of_ours_has_no_second_gpu(section: str, name: str) -> None:
    """It would lie idle, and a plan would count it."""
    with pytest.raises(UserError, match=f"{section}.{name}: 2 must be at most 1: .* Use more processes"):
        parse_config({section: {name: 2}})
    parse_config({section: {name: 1}})
