"""The working folder as one zip file: what is sent to the cluster, what is left out, and when it is too much.

Ray can pack a folder by itself. It then reads it twice, and fails if a file changed in between; it leaves out without a
word what .gitignore names, data among it; and of too much it says nothing but the sum.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prm_ray.errors import UserError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MIB = 2**20
LARGEST_FILE = 10 * MIB
"""A larger file is sent only if the config names it."""
LARGEST_PACKAGE = 200 * MIB
"""Before compression. Each node of the cluster unpacks it."""
LARGEST_UPLOAD = 100 * MIB
"""Compressed: Ray's dashboard takes less, and says of more nothing but that it is too large."""
MOST_FILES = 20_000
IGNORE_FILES = (".gitignore", ".rayignore")

_NEVER = {
    *(".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".ipynb_checkpoints", ".tox"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
}
"""Folders of these names, wherever they are."""
_RUNS = "runs"
"""Where runs of this machine are, on top of the folder."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """Files of a folder: path from the folder -> bytes."""

    root: Path
    files: dict[str, int]
    left_out: dict[str, int]
    """Those that were too large."""

    def write(self, target: Path) -> None:
        """Write the zip file. The same files make the same bytes, which a cluster that has them is not sent again.

        Raises `UserError` if it is more than a cluster takes, naming the folders that make it so.
        """
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in sorted(self.files):
                path = self.root / name
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (path.stat().st_mode & 0o777) << 16
                archive.writestr(entry, path.read_bytes())
        if (size := target.stat().st_size) >= LARGEST_UPLOAD:
            how_much = f"{in_mib(size)} compressed (Ray's dashboard takes less than {in_mib(LARGEST_UPLOAD)})"
            raise _too_much(self.root, self.files, how_much)

    def in_words(self) -> str:
        text = f"{len(self.files)} files of {self.root} ({in_mib(sum(self.files.values()))})"
        if not self.left_out:
            return text
        largest = sorted(self.left_out, key=self.left_out.__getitem__, reverse=True)
        names = ", ".join(f"{name} ({in_mib(self.left_out[name])})" for name in largest[:3])
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        return f"{text}, without {names}{more}: over {in_mib(LARGEST_FILE)} each and not named in the config"


def choose_files(root: Path, needed: Iterable[str] = ()) -> Package:
    """What to send of a folder: all but version control, environments, caches, runs, what its .gitignore and .rayignore
    name, and large files. `needed` (paths from `root`) is sent in any case.

    Raises `UserError` if there is too much, naming the folders that make it so.
    """
    files, left_out = {name: (root / name).stat().st_size for name in needed}, {}
    for path in _walk(root, root, []):
        name, size = path.relative_to(root).as_posix(), path.stat().st_size
        if size > LARGEST_FILE and name not in files:
            left_out[name] = size
        else:
            files[name] = size
        if len(files) > MOST_FILES:
            raise _too_much(root, files, f"more than {MOST_FILES:,} files")
    if sum(files.values()) > LARGEST_PACKAGE:
        raise _too_much(root, files, f"{in_mib(sum(files.values()))} (at most {in_mib(LARGEST_PACKAGE)})")
    return Package(root, files, left_out)


def in_mib(num_bytes: float) -> str:
    return f"{num_bytes / MIB:.1f} MiB"


def _walk(root: Path, folder: Path, ignored: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    """Files below a folder. Links to folders are not followed: what is behind them may be anything."""
    ignored = [*ignored, *_ignore_rules(folder)]
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
        if any(rules.match_file(_seen_from(top, path, is_folder)) for top, rules in ignored):
            continue
        if not is_folder:
            if entry.is_file():  # no sockets, no links to folders or to nothing
                yield path
        elif entry.name not in _NEVER and path != root / _RUNS:
            yield from _walk(root, path, ignored)


def _ignore_rules(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    from pathspec import GitIgnoreSpec

    for name in IGNORE_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            yield folder, GitIgnoreSpec.from_lines(lines)


def _seen_from(top: Path, path: Path, is_folder: bool) -> str:
    """A pattern that ends in / is for folders alone, which are told by the same sign."""
    return path.relative_to(top).as_posix() + ("/" if is_folder else "")


def _too_much(root: Path, files: dict[str, int], how_much: str) -> UserError:
    sizes: Counter[str] = Counter()
    for name, size in files.items():
        top, is_inside, _ = name.partition("/")
        sizes[f"{top}/" if is_inside else "files on top"] += size
    parts = ", ".join(f"{name} {in_mib(size)}" for name, size in sizes.most_common(5))
    return UserError(
        f"the working folder {str(root)!r} is too large to send, {how_much}: {parts}; name what a job does not need "
        "in a .rayignore file there, choose another --working-dir, or put data on storage that all nodes share"
    )
