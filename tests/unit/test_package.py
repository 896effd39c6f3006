"""What of a working folder is sent to a cluster."""

import os
import zipfile
from pathlib import Path

import pytest

from prm_ray.errors import UserError
from prm_ray.submitting import package
from prm_ray.submitting.package import LARGEST_FILE, MIB, choose_files


def put(root: Path, *names: str, size: int = 1) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("wb") as file:
            file.truncate(size)


def test_code_and_data_are_sent_but_no_history_environments_caches_or_runs(tmp_path: Path):
    kept = ["configs/a.toml", "my_module.py", "data/train.jsonl", "sub/runs/notes.txt"]
    left = [
        ".git/HEAD",
        ".venv/bin/python",
        "a/__pycache__/b.pyc",
        "sub/.mypy_cache/x",
        "runs/demo/responses/part-0.parquet",
    ]
    put(tmp_path, *kept, *left)
    assert sorted(choose_files(tmp_path).files) == sorted(kept)


def test_what_ignore_files_name_stays_here_unless_the_config_names_it(tmp_path: Path):
    put(tmp_path, "data/train.jsonl", "data/raw.jsonl", "sub/notes.txt", "sub/keep.txt", "big/x", "main.py")
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / ".rayignore").write_text("/big\n")
    (tmp_path / "sub" / ".gitignore").write_text("*\n!keep.txt\n")
    sent = choose_files(tmp_path, ["data/train.jsonl"]).files
    assert sorted(sent) == [".gitignore", ".rayignore", "data/train.jsonl", "main.py", "sub/keep.txt"]


def test_a_large_file_is_left_out_and_said_so_unless_the_config_names_it(tmp_path: Path):
    put(tmp_path, "data/train.jsonl", "data/other.jsonl", size=LARGEST_FILE + 1)
    chosen = choose_files(tmp_path, ["data/train.jsonl"])
    assert list(chosen.files) == ["data/train.jsonl"]
    assert "without data/other.jsonl (10.0 MiB): over 10.0 MiB each and not named in the config" in chosen.in_words()


def test_too_much_is_one_line_that_names_the_folders(tmp_path: Path):
    put(tmp_path, *(f"images/{number}.png" for number in range(24)), size=9 * MIB)
    put(tmp_path, "text/a.txt", size=2 * MIB)
    with pytest.raises(UserError, match=r"218.0 MiB \(at most 200.0 MiB\): images/ 216.0 MiB, text/ 2.0 MiB; name"):
        choose_files(tmp_path)


def test_a_folder_of_very_many_files_is_given_up_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "MOST_FILES", 5)
    put(tmp_path, *(f"home/{number}" for number in range(9)))
    with pytest.raises(UserError, match="more than 5 files: home/"):
        choose_files(tmp_path)


def test_links_to_files_are_sent_as_files_and_links_to_folders_are_not_followed(tmp_path: Path):
    put(tmp_path, "elsewhere/secret/x", "elsewhere/train.jsonl", "root/main.py")
    root = tmp_path / "root"
    (root / "data.jsonl").symlink_to(tmp_path / "elsewhere" / "train.jsonl")
    (root / "folder").symlink_to(tmp_path / "elsewhere" / "secret")
    (root / "nothing").symlink_to(tmp_path / "gone")
    assert sorted(choose_files(root).files) == ["data.jsonl", "main.py"]


def test_the_same_files_make_the_same_bytes_and_programs_stay_programs(tmp_path: Path):
    put(tmp_path, "root/run.sh", "root/a/b.txt")
    (tmp_path / "root" / "run.sh").chmod(0o755)
    archives = [tmp_path / "first.zip", tmp_path / "second.zip"]
    for archive in archives:
        os.utime(tmp_path / "root" / "run.sh", (0, 1_000_000_000 + archives.index(archive)))
        choose_files(tmp_path / "root").write(archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert archive.namelist() == ["a/b.txt", "run.sh"]
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755


def test_more_than_a_dashboard_takes_is_too_much_however_little_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(package, "LARGEST_UPLOAD", 1 * MIB)
    (tmp_path / "root" / "data").mkdir(parents=True)
    (tmp_path / "root" / "data" / "noise").write_bytes(os.urandom(2 * MIB))
    with pytest.raises(UserError, match=r"2.0 MiB compressed \(Ray's dashboard takes less than 1.0 MiB\): data/ 2.0"):
        choose_files(tmp_path / "root").write(tmp_path / "package.zip")
