"""Runs in an S3 bucket (a server on the loopback address): conditional writes, tables, reports, attempts."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from upath import UPath

from prm_ray import modelcache, objectstore
from prm_ray.adapters import AdapterSettings, add_adapter, has_adapter, save_weights
from prm_ray.compare.compare import compare_words
from prm_ray.config import RunConfig, load_config
from prm_ray.errors import StorageError, TakenOverError, UserError
from prm_ray.folders import scratch_folder
from prm_ray.models import load_model, load_tokenizer, resolve_model, write_prm_json
from prm_ray.objectstore import ObjectFolder, file_system, location
from prm_ray.parquetfiles import read_parquet, write_parquet
from prm_ray.problems import read_rows
from prm_ray.scorer import Scorer
from prm_ray.scoring.served import load_scorer, served_models
from prm_ray.stages.pipeline import clear_from, run_all, run_stage
from prm_ray.stages.searching.table import SearchTable
from prm_ray.storage import json_writer
from prm_ray.tables import StageFolder
from tests.s3 import names_in
from tests.tables_by_hand import mark_done
from tests.tiny import save_tiny_model
from tests.unit.test_attempts import attempt_at, everything, finish, search_rows
from tests.unit.test_pipeline import score_row


def config_at(tmp_path: Path, run_dir: Path, *overrides: str) -> RunConfig:
    """Of a run that scores with a published model, so trains none."""
    path = tmp_path / "run.toml"
    text = f'[run]\ndir = "{run_dir}"\n[rerank]\nsizes = [1, 2]\n[score]\nmodel = "o/m"\nstyle = "value_head"\n'
    path.write_text(text)
    return load_config(path, list(overrides))


def scored(tmp_path: Path, run_dir: Path) -> RunConfig:
    config = config_at(tmp_path, run_dir)
    mark_done(config, ("generate", "label", "reference", "score"))
    for part in range(3):
        more = {"prompt_id": f"p{part}", "text": "2", "step_rewards": [1.0], "policy_logprobs": None}
        rows = [score_row(0, "right", 2.0), score_row(1, "wrong", 1.0)]
        StageFolder(config.run.dir, "score").write_part(part, [row | more for row in rows])
    return config


def test_an_object_is_put_where_none_is_or_not_at_all(bucket: Path):
    with ObjectFolder(bucket / "run") as folder:
        assert folder.put_new("a", json_writer(1)) and not folder.put_new("a", json_writer(2))
        folder._fs.pipe_file(f"{folder._root}/b", b"first", mode="create")
        with pytest.raises(FileExistsError):  # the store decides, not what was looked up before
            folder._write("b", json_writer(2), "create")
        assert folder.read("a") == b"1\n" and folder.read("b") == b"first" and folder.names() == ["a", "b"]


def test_a_large_part_is_written_in_pieces_once(bucket: Path, monkeypatch: pytest.MonkeyPatch):
    content = os.urandom(2 * objectstore._MULTIPART_BYTES + 1)
    with ObjectFolder(bucket / "run") as folder:
        assert folder.put_new("large", lambda file: file.write(content) and None)
        etag = folder._fs.info(f"{folder._root}/large")["ETag"]
        assert etag.strip('"').endswith("-3"), "written in one piece"
        monkeypatch.setattr(folder, "has", lambda name: False)
        assert not folder.put_new("large", lambda file: file.write(content[::-1]) and None)
        assert folder.read("large") == content


def test_attempts_at_a_table_share_it(bucket: Path):
    older, newer = attempt_at(bucket / "run", "generate"), attempt_at(bucket / "run", "generate")
    newer.write_part(0, [{"prompt_id": "newer"}], {"work": {"tokens": 3}})
    (stored,) = older.write_part(0, [{"prompt_id": "older"}])
    assert stored["prompt_id"] == "newer" and older.part_counts(0) == {"work": {"tokens": 3}}
    older.write_part(1, [{"prompt_id": "older"}])
    assert [row["prompt_id"] for row in newer.rows()] == ["newer", "older"]
    assert pickle.loads(pickle.dumps(older)).finished_parts() == [0, 1]


def test_what_the_first_attempt_to_finish_made_is_put_in_place(bucket: Path):
    older, newer = attempt_at(bucket / "run", "evaluate"), attempt_at(bucket / "run", "evaluate")
    finish(older, "older")
    finish(newer, "newer")
    assert newer.manifest() == {"finished_at": "older"}
    assert (newer.path / "nested" / "page.html").read_text() == "older"
    found = {"attempts/00001.json", "attempts/00002.json", "finished.json", "manifest.json", "started.json"}
    assert names_in(newer.path) == found | {"nested/page.html", "report.json"}
    assert not older.workspace.exists() or not everything(older.workspace)


def test_an_attempt_whose_folder_was_cleared_leaves_nothing_in_the_new_one(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
):
    older = attempt_at(bucket / "run", "generate")
    StageFolder(bucket / "run", "generate").clear()
    newer = attempt_at(bucket / "run", "generate")
    with pytest.raises(TakenOverError, match=r"was removed \(--fresh\), and attempt 2"):
        older.write_part(0, [])
    write = ObjectFolder._write

    def clear_meanwhile(folder: ObjectFolder, *words: Any) -> None:
        monkeypatch.undo()
        newer.clear()
        attempt_at(bucket / "run", "generate")
        write(folder, *words)

    monkeypatch.setattr(ObjectFolder, "_write", clear_meanwhile)
    with pytest.raises(TakenOverError):
        newer.write_part(0, [])
    assert StageFolder(bucket / "run", "generate").finished_parts() == []


def test_a_newer_search_takes_the_table_over(bucket: Path):
    older = SearchTable(attempt_at(bucket / "run", "search"), 1)
    older.folder.write_part(0, search_rows("a"))
    assert SearchTable(attempt_at(bucket / "run", "search"), 1).done == {("a", "beam", 1)}
    with pytest.raises(TakenOverError):
        older.folder.put_part(1, search_rows("b"))


def test_a_run_is_picked_from_reported_compared_and_redone_there(tmp_path: Path, bucket: Path):
    config = scored(tmp_path, bucket / "runs" / "x")
    run_stage(config, "rerank")
    report = run_stage(config, "evaluate")
    assert report["rows_in"] == 6 and run_stage(config, "evaluate") == report
    assert {"report.json", "report.html", "accuracy.png"} <= names_in(config.run.dir / "report")
    local = scored(tmp_path, tmp_path / "local")
    for stage in ("rerank", "evaluate"):
        run_stage(local, stage)
    tables = [list(StageFolder(each.run.dir, "rerank").rows()) for each in (config, local)]
    assert tables[0] == tables[1]
    page = compare_words([str(config.run.dir), f"disk={local.run.dir}"], str(tmp_path / "comparison"))
    assert page.is_file()
    clear_from(config, "rerank")
    assert not StageFolder(config.run.dir, "rerank").is_done() and not names_in(config.run.dir / "report")
    assert StageFolder(config.run.dir, "score").is_done()


def test_rows_are_read_from_there(bucket: Path):
    (bucket / "train.jsonl").write_text('{"problem": "1 + 1"}\n')
    assert list(read_rows(str(bucket / "train.jsonl"))) == [{"problem": "1 + 1"}]
    with pytest.raises(UserError, match=r"file 's3://.*/test.jsonl' does not exist"):
        list(read_rows(str(bucket / "test.jsonl")))


def test_a_part_that_is_cut_off_is_named(bucket: Path):
    (bucket / "part-00000.parquet").write_text("PAR1")
    with pytest.raises(UserError, match=r"'s3://bucket-.*/part-00000\.parquet' is not a readable Parquet file"):
        read_parquet(bucket / "part-00000.parquet")


def test_a_part_in_a_store_that_is_away_is_not_called_damaged(bucket: Path):
    write_parquet(bucket / "part-00000.parquet", pa.table({"a": [1]}))
    nobody_listens = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    away = UPath(str(bucket / "part-00000.parquet"), use_listings_cache=False, **nobody_listens)
    with pytest.raises(StorageError, match=r"part-00000\.parquet' cannot be read: .*127\.0\.0\.1:9"):
        read_parquet(away)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda at: run_all(load_config(at, ["run.dir=s3://b/x"])), r"'s3://b/x' cannot be reached: "),
        (
            lambda at: load_config(at, ["run.dir=nowhere://x"]),
            r"run\.dir: .nowhere://x. is an address that fsspec",
        ),
        (lambda at: load_config("s3://b/run.toml"), r"config file .s3://b/run\.toml. does not exist"),
        (lambda at: compare_words(["a"], "s3://b/out"), r"--out .s3://b/out. must be a folder of this machine"),
        (
            lambda at: run_all(load_config(at, ["model.name=s3://b/m"])),
            r"model 's3://b/m' does not exist; it must be the address of a model folder",
        ),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_cannot_be_there_is_refused_in_one_line(tmp_path: Path, work: Callable[[Path], object], message: str):
    path = tmp_path / "run.toml"
    path.write_text("")
    with pytest.raises(UserError, match=message):
        work(path)


@pytest.fixture
def stored(bucket: Path, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run that was copied to the bucket, its reference beside its checkpoint."""
    monkeypatch.setenv("PRM_RAY_CACHE", str(tmp_path / "cache"))
    for name, seed in (("warmup", 0), ("checkpoint", 3)):
        save_tiny_model(tmp_path / "run" / name, seed=seed)
    facts = {"objective": "ce", "beta": 0.5, "step_rule": "newline", "with_reference": True}
    write_prm_json(tmp_path / "run" / "checkpoint", facts | {"reference": str(tmp_path / "run" / "warmup")})
    (tmp_path / "run" / "checkpoint" / "manifest.json").write_text("{}")
    fs, root = file_system(bucket / "run")
    fs.put(str(tmp_path / "run"), root, recursive=True)
    return bucket / "run"


def test_a_model_there_scores_as_it_does_here_with_the_reference_beside_it(stored: Path, tmp_path: Path):
    here = Scorer.from_pretrained(tmp_path / "run" / "checkpoint", dtype="float32")
    (expected,) = here.score("1+2", ["1\n2"])
    shutil.rmtree(tmp_path / "run")
    (found,) = Scorer.from_pretrained(f"{stored}/checkpoint", dtype="float32").score("1+2", ["1\n2"])
    assert found.step_rewards == expected.step_rewards and any(found.step_rewards)


def test_a_model_is_copied_once_and_again_when_it_changes(stored: Path, tmp_path: Path):
    first = resolve_model(f"{stored}/checkpoint")
    written = (Path(first) / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(f"{stored}/checkpoint") == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == written
    (stored / "checkpoint" / "manifest.json").write_text('{"finished_at": "later"}')
    second = resolve_model(f"{stored}/checkpoint")
    assert second != first and Path(first).is_dir()  # whoever was given it may be about to load it
    os.utime(Path(first) / ".address", (0, 0))
    (stored / "checkpoint" / "manifest.json").write_text('{"finished_at": "later still"}')
    third = resolve_model(f"{stored}/checkpoint")
    assert not Path(first).parent.exists() and Path(second).is_dir() and Path(third).is_dir()
    with pytest.raises(UserError, match=r"s3://.*/nothing\' cannot be reached|nothing. does not exist"):
        resolve_model(f"{stored}/nothing")


def test_of_the_workers_of_a_machine_one_fetches_a_model(stored: Path, monkeypatch: pytest.MonkeyPatch):
    make_folder, fetched = modelcache.tempfile.mkdtemp, list[str]()

    def note_and_make(**where: Any) -> str:
        time.sleep(0.2)  # so that the others come meanwhile
        fetched.append(make_folder(**where))
        return fetched[-1]

    monkeypatch.setattr(modelcache.tempfile, "mkdtemp", note_and_make)
    with ThreadPoolExecutor(4) as workers:
        found = set(workers.map(resolve_model, [f"{stored}/checkpoint"] * 4))
    assert len(found) == len(fetched) == 1


def test_an_adapter_there_is_loaded_over_the_base_beside_it(stored: Path, tmp_path: Path):
    model = add_adapter(load_model(f"{stored}/warmup", "float32"), AdapterSettings(2, 4.0), seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_weights(
        model, folder, {name: each for name, each in model.named_parameters() if "lora" in name}, torch.float32
    )
    load_tokenizer(f"{stored}/warmup").save_pretrained(folder)
    write_prm_json(folder, {"base": f"{stored}/warmup", "reference": f"{stored}/warmup"}, home=stored / "adapter")
    assert json.loads((folder / "prm.json").read_text()) == {"base": "../warmup", "reference": "../warmup"}
    fs, root = file_system(stored / "adapter")
    fs.put(str(folder), root, recursive=True)
    assert has_adapter(load_model(f"{stored}/adapter", "float32"))
    scorer = Scorer.from_pretrained(f"{stored}/adapter", dtype="float32")
    assert scorer.reference is scorer.policy


def test_a_server_finds_its_models_there_and_leaves_copying_to_its_replicas(stored: Path, tmp_path: Path):
    config = config_at(tmp_path, stored, f"serve.models.other={stored}/checkpoint", "score.model=", "score.style=")
    own, other = served_models(config)
    assert (own.facts.name, other.facts.name) == ("run", "other") and own.facts.with_reference
    assert own.folder == other.folder == f"{stored}/checkpoint"
    assert own.facts.aggregation == other.facts.aggregation == "sum"
    again = config_at(tmp_path, stored, "evaluate.aggregation=min", "score.model=", "score.style=")
    assert served_models(again)[0].facts.aggregation == "min"  # as in the run's report, made anew since it was trained
    (scored,) = load_scorer(own).score("1+2", ["1\n2"])
    assert any(scored.step_rewards)


def test_a_bucket_that_is_not_there_and_a_server_that_is_not_are_told(
    tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    config = config_at(tmp_path, Path("no-such-bucket"), "run.dir=s3://no-such-bucket/x")
    with pytest.raises(UserError, match=r"'s3://no-such-bucket/x' cannot be reached: .*bucket does not exist"):
        run_stage(config, "generate")
    with pytest.raises(StorageError, match=r"cannot be written: .*bucket does not exist"):
        ObjectFolder(location("s3://no-such-bucket/x")).replace("a", json_writer(1))


def test_what_is_on_its_way_lies_in_a_folder_that_nobody_else_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = scratch_folder(location("s3://b/run/checkpoint"))
    assert folder.is_dir() and folder.parents[1].stat().st_mode & 0o077 == 0
    folder.parents[1].rename(tmp_path / "elsewhere")
    folder.parents[1].symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"prm_ray-\d+. must be a folder of yours: set TMPDIR"):
        scratch_folder(tmp_path)
