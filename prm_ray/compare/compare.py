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
from prm_ray.runlog import Progress
from prm_ray.tables import write_json


def compare_words(words: Sequence[str], out: str, shown: Sequence[str] = ()) -> Path:
    """What the command line asks for: each word is a run's folder, or NAME=FOLDER."""
    named = [(Path(word.partition("=")[2]), word.partition("=")[0]) if _has_name(word) else word for word in words]
    return compare_runs(named, Path(out), shown=shown)


def _has_name(word: str) -> bool:
    return "=" in word and not Path(word).is_dir()


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
    or have no problem in common.
    """
    runs = _read([each if isinstance(each, tuple) else (each, None) for each in folders])
    comparison = compare_methods(runs, list(notes))
    names = [method.name for method in comparison.methods]
    if unknown := [name for name in shown if name not in names]:
        raise UserError(f"--show {unknown[0]!r} must be one of {', '.join(names)}")
    chosen = shown_methods(comparison, list(shown))
    data = {"title": title, "headline": "", "groups": dict(groups or {}), "shown": [method.name for method in chosen]}
    data |= comparison_figures(comparison) | {"scaling": scaling_curves(comparison.methods)}
    data["headline"] = headline(data)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", data)
    (out / "comparison.md").write_text(markdown_table(data), encoding="utf-8")
    page = out / "comparison.html"
    write_comparison_page(data, write_pictures(data, out), examples(comparison, chosen), page)
    return page


def _read(folders: Sequence[tuple[Path | str, str | None]]) -> list[FinishedRun]:
    runs = []
    with Progress("compare", len(folders), "run") as progress:
        for folder, name in folders:
            runs.append(read_run(folder, name))
            progress.advance()
    return runs
