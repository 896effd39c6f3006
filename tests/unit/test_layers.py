"""The two tables below are the architecture: who may import whom. Read from the source, nothing is imported for it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FOUNDATION = {"errors", "settings", "overrides", "config", "schemas", "storage", "objectstore", "folders"}
FOUNDATION |= {"attempts", "parquetfiles", "tables", "runlog", "metricslog"}
MODULES = {"arithmetic", "problems", "finalanswers", "answers", "dataselection"}
ENGINES = {
    *("adapters", "models", "fingerprints", "weights", "sharding", "trainerstate", "trainer", "trainingdata"),
    *("outcomelosses", "steplosses", "outcomedata", "rewardmodels", "texts", "scorer", "headscorer"),
    *("publishedformats", "publishedscorer", "damage", "modelcache", "embeddedmodel"),
}
BELOW_STAGES = FOUNDATION | MODULES | ENGINES | {"core"}
MAY_IMPORT = {
    "errors": set(),
    "settings": {"objectstore"},
    "overrides": {"errors"},
    "config": {"errors", "overrides", "settings"},
    "schemas": {"settings"},
    "storage": {"errors"},
    "objectstore": {"errors", "storage"},
    "folders": {"errors", "objectstore", "storage"},
    "attempts": {"errors", "storage", "objectstore", "folders"},
    "parquetfiles": {"errors", "storage", "objectstore", "folders", "attempts"},
    "tables": {"errors", "schemas", "storage", "objectstore", "folders", "attempts", "parquetfiles"},
    "runlog": set(),
    "metricslog": {"errors", "storage", "objectstore", "folders", "runlog"},
    "core": {"core"},
    "arithmetic": FOUNDATION | {"problems"},
    "problems": FOUNDATION | {"arithmetic"},
    "finalanswers": set(),
    "answers": FOUNDATION | {"finalanswers"},
    "dataselection": FOUNDATION,
    "damage": {"errors", "storage"},
    "modelcache": {"errors", "storage", "objectstore"},
    "embeddedmodel": {"errors", "storage", "modelcache"},
    "adapters": {"errors", "damage", "modelcache"},
    "models": FOUNDATION | {"core", "adapters", "damage", "embeddedmodel", "modelcache"},
    "fingerprints": {"adapters", "models", "tables"},
    "texts": FOUNDATION | {"core", "models"},
    "scorer": FOUNDATION | {"core", "adapters", "models", "texts"},
    "rewardmodels": FOUNDATION | {"core", "adapters", "models", "damage"},
    "headscorer": FOUNDATION | {"core", "models", "rewardmodels", "texts", "scorer"},
    "publishedformats": {"errors", "texts"},
    "publishedscorer": FOUNDATION | {"core", "models", "publishedformats", "rewardmodels", "texts", "scorer"},
    "weights": {"core"},
    "sharding": {"core", "weights"},
    "trainerstate": {"errors"},
    "trainer": FOUNDATION | {"core", "adapters", "weights", "sharding", "trainerstate"},
    "trainingdata": FOUNDATION | {"core", "trainer"},
    "outcomelosses": FOUNDATION | {"core", "weights", "trainer", "trainingdata", "outcomedata"},
    "steplosses": FOUNDATION | {"core", "trainer", "trainingdata", "outcomelosses", "outcomedata"},
    "outcomedata": FOUNDATION | {"core", "trainer", "trainingdata", "outcomelosses"},
    "conversations": {"models", "texts"},
    "client": set(),
    "search": FOUNDATION | {"answers", "core", "search"},
    "stages": BELOW_STAGES | {"scoring", "search", "stages"},
    "scoring": FOUNDATION | ENGINES | {"core", "conversations", "scoring"},
    "serve": BELOW_STAGES | {"conversations", "scoring", "search", "stages", "serve"},
    "compare": FOUNDATION | {"core", "arithmetic", "stages"},
    "experiment": FOUNDATION | {"stages", "compare"},
    "demo": BELOW_STAGES | {"client", "stages", "serve"},
    "integrations": {"client"},
    "planning": FOUNDATION | {"arithmetic", "core", "entry", "experiment", "planning"},
    "entry": FOUNDATION,
    "makekey": {"entry", "serve"},
    "submitting": FOUNDATION | {"entry", "experiment", "stages", "submitting"},
    "cli": BELOW_STAGES
    | {"entry", "stages", "serve", "demo", "compare", "experiment", "makekey", "planning", "submitting"},
    "__main__": {"cli"},
    "jobs": FOUNDATION | {"entry", "stages", "serve"},
}
"""Part of prm_ray -> the parts it may name, anywhere in its files."""

LIGHT = {"pydantic", "pyarrow", "tqdm"}
NEURAL = LIGHT | {"torch", "transformers", "numpy", "safetensors"}
TOP_LEVEL = {
    **dict.fromkeys(FOUNDATION | MODULES, LIGHT),
    "problems": LIGHT | {"numpy"},
    "core": {"torch", "numpy"},
    **dict.fromkeys(ENGINES, NEURAL),
    "conversations": NEURAL,
    "scoring": NEURAL,
    "search": LIGHT | {"numpy"},
    "client": {"httpx"},
    "stages": NEURAL | {"ray", "matplotlib", "jinja2"},
    "serve": NEURAL | {"ray", "fastapi", "starlette", "httpx", "pydantic_core", "prometheus_client"},
    "compare": LIGHT | {"numpy", "safetensors"},
    "integrations": set(),
    **dict.fromkeys(
        ("cli", "demo", "entry", "jobs", "experiment", "makekey", "planning", "submitting", "__main__"), LIGHT
    ),
}
"""Part -> packages that its files may import on top; what is not here is imported inside the function that needs it."""

HOOKS_INTO_TRANSFORMERS = "prm_ray/core/attention.py"
"""The one file of core that may import it, inside a function: it registers our attention there."""
USES_RAY = {"stages", "serve", "jobs", "submitting"}
USES_VLLM = {"prm_ray/stages/sampler.py"}
LIGHT_PROCESSES = {
    "prm_ray.config": "torch ray transformers vllm",
    "prm_ray.cli": "torch ray transformers vllm",
    "prm_ray.submitting.verbs": "torch ray transformers vllm pydantic",
    "prm_ray.submitting.sender": "torch ray transformers vllm",
    "prm_ray.planning.plan": "torch ray transformers vllm numpy pyarrow",
    "prm_ray.experiment.grid": "torch ray transformers vllm",
    "prm_ray.compare.compare": "ray transformers vllm",
    "prm_ray.client": "torch ray transformers vllm pydantic",
    "prm_ray.integrations.trl": "torch ray transformers vllm trl",
    "prm_ray.integrations.verl": "torch ray transformers vllm verl",
    "prm_ray.scorer": "ray vllm",
    "prm_ray.trainer": "ray vllm",
}


def source_files() -> list[Path]:
    return sorted([*ROOT.glob("prm_ray/**/*.py"), *ROOT.glob("jobs/*.py")])


def part_of(path: Path) -> str:
    """`prm_ray/core/steps.py` -> core, `prm_ray/scorer.py` -> scorer, `jobs/train.py` -> jobs."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "jobs" else parts[1]


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(dotted name, is it on top of the file) of every import but those under `if TYPE_CHECKING`."""
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
    }
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test).endswith("TYPE_CHECKING")
        for node in guard.body
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "prm_ray" else [module]
            yield from ((name, id(node) not in inside) for name in names)


def faults(path: Path) -> Iterator[str]:
    name, part = str(path.relative_to(ROOT)), part_of(path)
    for imported, on_top in imports(ast.parse(path.read_text(encoding="utf-8"))):
        package, *rest = imported.split(".")
        if package == "prm_ray" and rest and rest[0] not in MAY_IMPORT.get(part, set()) | {part}:
            yield f"{name} imports prm_ray.{rest[0]}"
        elif package == "ray" and part not in USES_RAY:
            yield f"{name} imports ray"
        elif package == "vllm" and name not in USES_VLLM:
            yield f"{name} imports vllm"
        elif on_top and package not in {"prm_ray", "vllm"} | sys.stdlib_module_names | TOP_LEVEL.get(part, set()):
            yield f"{name} imports {package} on top"
        elif package == "transformers" and name == HOOKS_INTO_TRANSFORMERS:
            continue
        elif part == "core" and package not in {"prm_ray"} | sys.stdlib_module_names | TOP_LEVEL["core"]:
            yield f"{name} imports {package}"


def test_every_import_is_allowed_by_the_tables():
    assert [
        fault
        for path in source_files()
        if path.stem != "__init__" or part_of(path) in MAY_IMPORT
        for fault in faults(path)
    ] == []


def test_every_part_of_the_package_is_in_the_tables():
    parts = {part_of(path) for path in source_files()} - {"__init__"}
    assert parts <= MAY_IMPORT.keys(), f"give {parts - MAY_IMPORT.keys()} a line in MAY_IMPORT"


def test_jobs_import_only_light_modules_before_main():
    for path in ROOT.glob("jobs/*.py"):
        on_top = {
            name for name, on_top in imports(ast.parse(path.read_text())) if on_top and name.startswith("prm_ray")
        }
        assert on_top <= {"prm_ray.config", "prm_ray.entry", "prm_ray.errors"}, f"{path.name} imports {on_top}"


@pytest.mark.parametrize(("module", "forbidden"), LIGHT_PROCESSES.items())
def test_a_clean_process_that_imports_it_stays_light(module: str, forbidden: str):
    program = f"import sys, {module}; print(*(set({forbidden.split()!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
