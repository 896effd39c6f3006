"""Attempts at one stage that overlap: parts are added side by side, all else counts of one of them, and a folder that
was cleared stays free of what an older attempt still writes."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from prm_ray import attempts
from prm_ray.errors import TakenOverError, UserError
from prm_ray.fingerprints import model_fingerprint
from prm_ray.stages.reference import read_cache, write_cache
from prm_ray.stages.searching.table import SearchTable
from prm_ray.storage import HeldFolder, json_writer
from prm_ray.tables import StageFolder


def attempt_at(run_dir: Path, stage: str) -> StageFolder:
    """What a process that has begun the stage holds."""
    folder = StageFolder(run_dir, stage)
    folder.begin({"run.seed": 0})
    return pickle.loads(pickle.dumps(folder))  # as its workers get it


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_of_two_attempts_the_first_to_write_a_part_counts_for_both(tmp_path: Path):
    older, newer = attempt_at(tmp_path, "generate"), attempt_at(tmp_path, "generate")
    assert newer.write_part(0, [{"prompt_id": "newer"}]) == [{"prompt_id": "newer"}]
    (stored,) = older.write_part(0, [{"prompt_id": "older"}, {"prompt_id": "older too"}])
    assert stored["prompt_id"] == "newer"
    older.write_part(1, [{"prompt_id": "older"}])
    assert [row["prompt_id"] for row in newer.rows()] == ["newer", "older"]


def test_an_attempt_whose_folder_was_cleared_leaves_nothing_in_the_new_one(tmp_path: Path):
    older = attempt_at(tmp_path, "generate")
    older.write_part(0, [{"prompt_id": "older"}])
    StageFolder(tmp_path, "generate").clear()
    with pytest.raises(TakenOverError, match=r"responses' was removed \(--fresh\): attempt 1 \(process"):
        older.write_part(1, [])
    newer = attempt_at(tmp_path, "generate")
    before = everything(newer.path)
    for write in (
        lambda: older.write_part(0, [{"prompt_id": "older"}]),
        lambda: older.write_json("calibration.json", {}),
        lambda: older.finish({"stage": "generate"}),
    ):
        with pytest.raises(TakenOverError, match=r"was removed \(--fresh\), and attempt 2 .* has begun it anew"):
            write()
    assert everything(newer.path) == before
    assert not list(tmp_path.glob(".removed-*"))


def test_a_folder_that_is_cleared_while_a_part_is_written_takes_the_part_along(tmp_path: Path):
    older = attempt_at(tmp_path, "generate")

    def clear_meanwhile(file) -> None:
        file.write(b"older")
        os.rename(older.path, tmp_path / "elsewhere")
        attempt_at(tmp_path, "generate")

    assert older.attempt is not None
    with attempts.hold(older.path, older.attempt, is_fenced=False) as held:
        assert held.put_new("part-00000.parquet", clear_meanwhile)
    assert StageFolder(tmp_path, "generate").finished_parts() == []
    assert (tmp_path / "elsewhere" / "part-00000.parquet").read_bytes() == b"older"


def test_a_folder_that_is_gone_before_a_part_is_in_place_is_said_to_be_removed(tmp_path: Path):
    older = attempt_at(tmp_path, "generate")
    assert older.attempt is not None

    def clear_meanwhile(file) -> None:
        """Half-way: renamed, and of what is in it the workspace has gone first."""
        file.write(b"older")
        os.rename(older.path, tmp_path / "removed")
        shutil.rmtree(tmp_path / "removed" / older.attempt.workspace)

    with (
        pytest.raises(TakenOverError, match=r"was removed \(--fresh\)"),
        attempts.hold(older.path, older.attempt, is_fenced=False) as held,
    ):
        held.put_new("part-00000.parquet", clear_meanwhile)
    with pytest.raises(TakenOverError, match=r"was removed \(--fresh\)"):
        attempts.enter(older.path, older.attempt, is_fenced=False)
    newer = attempt_at(tmp_path, "generate")
    assert newer.attempt is not None
    with pytest.raises(FileNotFoundError), attempts.hold(newer.path, newer.attempt, is_fenced=False):
        (tmp_path / "nowhere").read_bytes()  # another file that is missing is another matter


@pytest.mark.parametrize("stage", ["train", "warmup", "search"])
def test_of_a_stage_that_is_one_stream_only_the_newest_attempt_writes(tmp_path: Path, stage: str):
    older, newer = attempt_at(tmp_path, stage), attempt_at(tmp_path, stage)
    newer.check()
    for write in (older.check, lambda: older.write_json("usage.json", {}), lambda: older.finish({})):
        with pytest.raises(TakenOverError, match=r"attempt 2 \(process \d+ on .*\) has taken over .* from attempt 1"):
            write()
    assert not (newer.path / "usage.json").exists() and not newer.is_done()


def test_the_older_process_does_not_take_over_by_getting_there_later(tmp_path: Path):
    """Both have come through the stage before, the older one more slowly."""
    older, newer = attempt_at(tmp_path, "label").attempt, attempt_at(tmp_path, "label").attempt
    StageFolder(tmp_path, "train").begin({}, attempt=newer)
    with pytest.raises(TakenOverError, match=r"attempt 2 .* has taken over"):
        StageFolder(tmp_path, "train").begin({}, attempt=older)


def test_an_attempt_builds_on_what_another_finished_only_in_the_folder_it_began(tmp_path: Path):
    older, newer = attempt_at(tmp_path, "evaluate"), attempt_at(tmp_path, "evaluate")
    assert not older.was_finished_by_another()
    finish(newer, "newer")
    assert older.was_finished_by_another()
    older.clear()
    finish(attempt_at(tmp_path, "evaluate"), "anew")
    assert not older.was_finished_by_another()


def test_numbers_go_on_where_stages_are_if_those_of_the_run_were_removed(tmp_path: Path):
    attempt_at(tmp_path, "train")
    attempt_at(tmp_path, "train")
    for path in (tmp_path / "attempts").iterdir():
        path.unlink()
    third = attempt_at(tmp_path, "train")
    third.check()
    assert third.attempt is not None and third.attempt.number == 3


def finish(folder: StageFolder, who: str) -> None:
    (folder.workspace / "report.json").write_text(who)
    (folder.workspace / "nested").mkdir()
    (folder.workspace / "nested" / "page.html").write_text(who)
    (folder.workspace / ".ray_train").mkdir()
    folder.finish({"finished_at": who})


def test_what_the_attempt_that_finishes_first_made_is_put_in_place_and_stays(tmp_path: Path):
    older, newer = attempt_at(tmp_path, "evaluate"), attempt_at(tmp_path, "evaluate")
    finish(older, "older")
    newer.workspace.mkdir()
    finish(newer, "newer")
    assert newer.manifest() == {"finished_at": "older"}
    assert everything(newer.path) == {
        *("attempts", "attempts/00001.json", "attempts/00002.json", "finished.json", "manifest.json"),
        *("nested", "nested/page.html", "report.json", "started.json"),
    }
    assert {path.read_text() for path in newer.path.glob("**/[rp]*.*")} == {"older"}


def test_a_model_that_two_attempts_made_alike_has_one_fingerprint(tmp_path: Path):
    """Not that of the attempt: log-probs of a reference that was made again are found in the cache."""
    found = set()
    for name in ("one", "other"):
        folder = attempt_at(tmp_path / name, "warmup")
        (folder.workspace / "config.json").write_text("{}")
        (folder.workspace / "model.safetensors").write_text("weights")
        folder.finish({"finished_at": name})
        found.add(model_fingerprint(str(folder.path)))
    (folder.path / "model.safetensors").write_text("changed")
    assert len(found) == 1 and model_fingerprint(str(folder.path)) not in found


@pytest.mark.parametrize("moved", [[], ["model-1.safetensors"], ["model-1.safetensors", "model-2.safetensors"]])
def test_an_attempt_killed_while_it_puts_things_in_place_has_finished(tmp_path: Path, moved: list[str]):
    folder = attempt_at(tmp_path, "train")
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (folder.workspace / name).write_text(name)
    (folder.workspace / "manifest.json").write_text('{"finished_at": "noon"}')
    (folder.path / "finished.json").write_text(json.dumps({"workspace": folder.workspace.name}))
    for name in moved:
        (folder.workspace / name).rename(folder.path / name)
    other = StageFolder(tmp_path, "train")
    assert not other.is_done() and other.complete() and other.manifest() == {"finished_at": "noon"}
    assert [(other.path / f"model-{number}.safetensors").exists() for number in (1, 2)] == [True, True]
    assert not list(other.path.glob("attempt-*"))


def test_a_stage_whose_manifest_was_removed_is_done_again(tmp_path: Path):
    finish(attempt_at(tmp_path, "train"), "first")
    StageFolder(tmp_path, "train").manifest_path.unlink()
    assert not StageFolder(tmp_path, "train").complete()
    again = attempt_at(tmp_path, "train")
    finish(again, "again")
    assert again.manifest() == {"finished_at": "again"} and (again.path / "report.json").read_text() == "again"


def test_storage_without_hard_links_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with HeldFolder(tmp_path) as folder:
        assert folder.put_new("a", json_writer(1)) and not folder.put_new("a", json_writer(2))
        assert folder.read("a") == b"1\n" and folder.names() == ["a"]


def test_an_answer_that_nfs_lost_is_no_other_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def link_twice(*words, **options) -> None:
        link(*words, **options)
        link(*words, **options)  # the client asks again, and hears that the name is there

    monkeypatch.setattr(os, "link", link_twice)
    with HeldFolder(tmp_path) as folder:
        assert folder.put_new("a", json_writer(1))


def test_a_cache_that_is_being_written_when_its_worker_is_killed_leaves_nothing_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, cache = attempt_at(tmp_path, "reference"), tmp_path / "reference_cache" / "part-00000.parquet"
    unfinished: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda _: unfinished.extend(tmp_path.rglob(".*.tmp")))
    write_cache(cache, [{"fingerprint": "a", "ref_logprobs": [-1.0]}], folder.workspace)
    assert [path.parent for path in unfinished] == [folder.workspace]
    assert read_cache(cache) == {"a": [-1.0]}


def search_rows(*problems: str) -> list[dict]:
    return [{"prompt_id": problem, "strategy": "beam", "size": 1, "num_sampled": 1} for problem in problems]


def test_a_newer_search_knows_all_that_an_older_one_wrote_and_the_older_writes_no_more(tmp_path: Path):
    older = SearchTable(attempt_at(tmp_path, "search"), 1)
    older.folder.write_part(0, search_rows("a"))
    newer = SearchTable(attempt_at(tmp_path, "search"), 1)
    assert newer.done == {("a", "beam", 1)}
    older._next_part, older._waiting = 1, [search_rows("b")]
    with pytest.raises(TakenOverError):
        older.flush()
    newer._waiting = [search_rows("b")]
    newer.flush()
    assert [row["prompt_id"] for row in newer.folder.rows()] == ["a", "b"]


def test_a_part_that_an_older_search_writes_at_the_last_moment_is_known_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The older one has been let through before the newer one began, and writes between its two looks."""
    older, newer = attempt_at(tmp_path, "search"), attempt_at(tmp_path, "search")
    older.attempt, late = None, [search_rows("a")]
    finished_parts = StageFolder.finished_parts

    def write_behind_it(folder: StageFolder) -> list[int]:
        found = finished_parts(folder)
        if late:
            older.put_part(0, late.pop())
        return found

    monkeypatch.setattr(StageFolder, "finished_parts", write_behind_it)
    table = SearchTable(newer, 1)
    assert table.done == {("a", "beam", 1)}
    assert not older.put_part(1, search_rows("b"))


def test_a_link_is_still_refused(tmp_path: Path):
    finish(attempt_at(tmp_path, "label"), "done")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels").symlink_to(tmp_path / "labels")
    with pytest.raises(UserError, match="is a link to"):
        attempt_at(tmp_path / "other", "label")
