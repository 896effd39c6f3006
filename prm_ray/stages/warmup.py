"""warmup (optional): supervised fine-tuning on worked solutions, for a model that does not know the format yet.

In: problems with solutions. Out: warmup/, a plain model folder that generates, is the reference, and starts as policy.
"""

from __future__ import annotations

from functools import partial

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import build_messages, encode_prompt, encode_response, load_tokenizer, resolve_model
from prm_ray.problems import load_problems
from prm_ray.stages.fit import FitPlan, fit
from prm_ray.stages.result import StageResult
from prm_ray.tables import StageFolder
from prm_ray.trainingdata import SolutionData, num_packed_tokens


def check(config: RunConfig) -> None:
    """Raises `UserError` for a model without tokenizer or chat template, or problems without solutions."""
    resolve_model(config.model.name)
    solution_data(config)


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    section = config.warmup
    data = solution_data(config)
    num_problems = len(data.sizes)
    make_data = partial(solution_data, config)
    plan = FitPlan("warmup", folder, config.model.name, config, section, config.run.seed, make_data)
    fit(plan, len(plan.steps(data)))
    tokens = data.count(range(num_problems)) * section.epochs
    details = {"trained_tokens": num_packed_tokens(data) * section.epochs}
    return StageResult(num_problems, num_problems, {}, tokens, details)


def solution_data(config: RunConfig) -> SolutionData:
    """Encoded prompts and solutions. Raises `UserError` if a problem has no worked solution."""
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
    return SolutionData(prompts, solutions)
