"""warmup (optional): supervised fine-tuning on worked solutions, for a model that does not know the format yet.

In: problems with solutions. Out: warmup/, a plain model folder that generates, is the reference, and starts as policy.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow as pa

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import build_messages, encode_prompt, encode_response, load_tokenizer, resolve_model
from prm_ray.problems import load_problems
from prm_ray.stages.fit import FitPlan, fit
from prm_ray.stages.mappedrows import mapped_rows, rows_writer
from prm_ray.stages.result import StageResult
from prm_ray.tables import StageFolder
from prm_ray.trainingdata import SolutionData, num_packed_tokens

_SCHEMA = pa.schema({name: pa.list_(pa.int32()) for name in ("prompt_tokens", "solution_tokens")})


def check(config: RunConfig) -> None:
    """Raises `UserError` for a model without tokenizer or chat template, or problems without solutions."""
    resolve_model(config.model.name)
    _encoded(config)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section = config.warmup
    stored = store_solutions(config, folder)
    data = stored_data(stored)
    num_problems = len(data.sizes)
    make_data = partial(stored_data, stored)
    plan = FitPlan("warmup", folder, config.model.name, config, section, config.run.seed, make_data)
    fit(plan, len(plan.steps(data)))
    tokens = data.count(range(num_problems)) * section.epochs
    details = {"trained_tokens": num_packed_tokens(data) * section.epochs}
    return StageResult(num_problems, num_problems, {}, tokens, details)


def store_solutions(config: RunConfig, folder: StageFolder) -> Path:
    """Put the encoded solutions where this attempt's workers find them: whoever starts the run is the only one who
    reads where the problems come from, which may be a hub or a disk that workers do not reach."""
    prompts, solutions = _encoded(config)
    table = pa.table({"prompt_tokens": prompts, "solution_tokens": solutions}, schema=_SCHEMA)
    return folder.write_draft(".solutions.arrow", rows_writer(table))


def stored_data(path: Path) -> SolutionData:
    table = mapped_rows(path)
    return SolutionData(table["prompt_tokens"].to_pylist(), table["solution_tokens"].to_pylist())


def _encoded(config: RunConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and solutions. Raises `UserError` if a problem has no worked solution."""
    tokenizer = load_tokenizer(config.model.name, config.prompt.chat_template, config.model.trust_remote_code)
    prompts, solutions = [], []
    for problem in load_problems(config, "warmup"):
        if problem.problem is None or problem.error:
            continue
        if problem.solution is None:
            raise UserError(
                f"warmup needs worked solutions: set problems.solution_field ({problem.problem!r} has none)"
            )
        prompts.append(encode_prompt(tokenizer, build_messages(config.prompt, problem.problem)))
        solutions.append(encode_response(tokenizer, problem.solution))
    return prompts, solutions
