"""The tree in the README is the tree on disk, the settings in the docs are those of the code, and files stay short."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from prm_ray.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
TABLES_OF_SETTINGS = {"prm_ray/settings.py"}  # one line a setting and no logic: long, and better in one place
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 60, 6


def tracked(*patterns: str) -> list[str]:
    output = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if output.returncode:
        pytest.skip("not a git checkout", allow_module_level=True)
    return [name for name in output.stdout.split() if (ROOT / name).is_file()]


def paths_in_readme_tree() -> set[str]:
    """Paths of the README's tree: a folder ends with a slash, what it holds is indented by two more spaces."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## What is where\n\n```\n(.*?)```", readme, flags=re.S)
    assert block, "README.md has no tree under 'What is where'"
    paths: set[str] = set()
    folders: list[str] = []
    for line in block[1].splitlines():
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        paths.add("".join([*folders, name]))
        if name.endswith("/"):
            folders.append(name)
    return paths


def settings_in_docs() -> dict[str, str]:
    """`section.key` -> default, as written in docs/running.md."""
    found: dict[str, str] = {}
    section = ""
    for line in (ROOT / "docs/running.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"### \[(\w+)\]", line):
            section = heading[1]
        elif section and (row := re.match(r"\| `(\w+)` \| (.*?) \| \S", line)):
            found[f"{section}.{row[1]}"] = row[2].strip("`")
    return found


def settings_in_code() -> dict[str, str]:
    found: dict[str, str] = {}
    for section, values in RunConfig().model_dump(mode="json", by_alias=True).items():
        for key, value in values.items():
            if (section, key) == ("run", "dir"):
                value = str(Path(value).relative_to(Path.cwd()))  # made absolute when it is read
            shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            found[f"{section}.{key}"] = "none" if value is None else shown
    return found


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (f"{name}:{node.lineno} {node.name}", node)
        for name in tracked("prm_ray/*.py", "jobs/*.py", "tests/*.py", "examples/*.py")
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_the_readme_tree_names_every_file_of_the_package():
    files = {name for name in tracked("prm_ray/*.py") if not name.endswith("__init__.py")}
    assert files - paths_in_readme_tree() == set()


def test_the_readme_tree_names_every_top_folder():
    folders = {name.split("/")[0] + "/" for name in tracked() if "/" in name and not name.startswith(".")}
    assert folders - paths_in_readme_tree() == set()


def test_the_readme_tree_names_nothing_that_is_not_there():
    assert [path for path in sorted(paths_in_readme_tree()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", tracked("*.md"))
def test_links_in_documents_lead_somewhere(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|s(?:rc|rcset)=\"([^\"]+)\"", text)
    local = [link for pair in links for link in pair if link and "://" not in link]
    assert [link for link in local if not ((ROOT / name).parent / link).exists()] == []


def test_every_setting_is_documented_with_its_default():
    assert settings_in_docs() == settings_in_code()


def test_every_test_file_has_a_name_of_its_own():
    """pytest cannot collect two of one name in folders without `__init__.py`."""
    names = [Path(name).name for name in tracked("tests/*.py") if Path(name).name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_files_stay_short():
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in tracked("*.py")}
    too_long = {name for name, length in lengths.items() if length > MAX_FILE_LINES}
    assert too_long - TABLES_OF_SETTINGS == set()


def test_functions_stay_short_and_take_few_parameters():
    for where, node in functions():
        assert (node.end_lineno or node.lineno) - node.lineno + 1 <= MAX_FUNCTION_LINES, where
        positional = [arg.arg for arg in node.args.args if arg.arg not in ("self", "cls")]
        assert len(positional) <= MAX_PARAMETERS, where


def test_the_shortest_example_is_as_short_as_promised():
    lines = (ROOT / "examples/score_one_solution.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 15
