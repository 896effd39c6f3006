"""`prm-ray compare`: finished runs -> comparison.html, comparison.json, comparison.md and a PNG a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prm_ray.compare.examples import examples, shown_methods
from prm_ray.compare.figures import comparison_figures
from prm_ray.compare.methods import compare_methods
from prm_ray.compare.page import headline, markdown_table, write_comparison_page, write_pictures
from prm_ray.compare.runs import FinishedRun, read_run
from prm_ray.compare.scaling import scaling_curves
from prm_ray.errors import UserError
from prm_ray.objectstore import is_remote, location
from prm_ray.runlog import Progress
from prm_ray.tables import write_json


def compare_words(words: Sequence[str], out: str, shown: Sequence[str] = ()) -> Path:
    """What the command line asks for: each word is a run's folder, or NAME=FOLDER."""
    return compare_runs([_named(word) for word in words], _folder(out), shown=shown)


def _folder(out: str) -> Path:
    if is_remote(out):
        raise UserError(f"--out {out!r} must be a folder of this machine")
    return Path(out)


def _named(word: str) -> str | tuple[Path, str]:
    if "=" not in word or Path(word).is_dir():
        return word
    name, _, folder = word.partition("=")
    if not name.strip() or not folder.strip():
        raise UserError(f"{word!r} must be a run's folder or NAME=FOLDER, with a name and a folder")
    return location(folder), name


def compare_runs(
    folders: Iterable[Path | str | tuple[Path, str]],
    out: Path,
    *,
    title: str = "Comparison",
    groups: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    shown: Sequence[str] = (),
) -> Path:
    """Compare finished runs, each a folder or a folder with the name to give it; return the page's path.

    The first one's method is what the others are compared with. `groups`: group -> heading. `shown`: names of the
    methods that lines and examples are of. Raises `UserError` for runs that are not finished, do not belong together
    or have no problem in common, and if `out` cannot be a folder.
    """
    _check_can_be_folder(out)
    runs = _read([each if isinstance(each, tuple) else (each, None) for each in folders])
    comparison = compare_methods(runs, list(notes))
    names = [method.name for method in comparison.methods]
    if unknown := [name for name in shown if name not in names]:
        raise UserError(f"--show {unknown[0]!r} must be one of {', '.join(names)}")
    chosen = shown_methods(comparison, list(shown))
    headings = {run.group: run.heading for run in runs} | dict(groups or {})
    data = {"title": title, "headline": "", "groups": headings, "shown": [method.name for method in chosen]}
    data |= comparison_figures(comparison) | {"scaling": scaling_curves(comparison.methods)}
    data["headline"] = headline(data)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", data)
    (out / "comparison.md").write_text(markdown_table(data), encoding="utf-8")
    page = out / "comparison.html"
    write_comparison_page(data, write_pictures(data, out), examples(comparison, chosen), page)
    return page


def _check_can_be_folder(out: Path) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {str(out)!r} must be a folder to write to, but {str(there)!r} is a file")


def _read(folders: Sequence[tuple[Path | str, str | None]]) -> list[FinishedRun]:
    runs = []
    with Progress("compare", len(folders), "run") as progress:
        for folder, name in folders:
            runs.append(read_run(folder, name))
            progress.advance()
    return runs
