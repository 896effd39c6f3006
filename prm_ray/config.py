"""One file = one run, a section a stage: reads it plus `section.key=value` overrides into a frozen `RunConfig`.

People write TOML; programs (an experiment, for each of its runs) write the same sections as JSON.

Nothing heavy is imported here: a wrong config is answered in well under a second. The sections are in `settings.py`.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from prm_ray.errors import UserError
from prm_ray.overrides import apply_overrides
from prm_ray.settings import (
    Aggregation,
    ArithmeticSection,
    EvaluateSection,
    GenerateSection,
    ImportSection,
    LabelSection,
    ModelSection,
    PolicySection,
    ProblemsSection,
    ProcessBenchSection,
    PromptSection,
    ReferenceSection,
    RerankSection,
    RunSection,
    ScoreSection,
    SearchSection,
    Section,
    SelectSection,
    ServeSection,
    StepLabelSection,
    TrainSection,
    WarmupSection,
)

STAGES = ("warmup", "generate", "label", "import", "reference", "step_label", "train", "score", "rerank", "evaluate")
"""The stages in data order. `generate` and `label` stand against `import`: a run has either the two or the one."""

MEASUREMENTS = {"processbench": "train", "policy": "train", "search": "train"}
"""Verbs beside the chain, each with the stage it builds on. `run` leaves them out, and nothing builds on them."""
_WITHOUT_TRAINING = {"search": "reference"}
"""The same in a run that scores with a published model; the others need nothing of it."""

_IDENTITY = {
    "warmup": ("model", "prompt", "problems", "arithmetic", "warmup"),
    "generate": ("model", "prompt", "problems", "arithmetic", "generate"),
    "label": ("label",),
    "import": ("import", "prompt", "label.answer_pattern"),
    "reference": ("model", "reference"),
    "step_label": ("generate", "label", "step_label"),
    "train": ("select", "train"),
    "score": ("score",),
    "rerank": ("rerank",),
    "evaluate": ("evaluate",),
    "processbench": ("processbench", "score"),
    "policy": ("policy", "prompt", "generate", "label"),
    "search": ("search", "prompt", "generate", "label", "reference", "score"),
}
_RESOURCES = {
    "token_budget",
    "checkpoint_every",
    "num_workers",
    "min_workers",
    "gpus_per_worker",
    "parallel",
    "gradient_checkpointing",
    "num_engines",
    "gpus_per_engine",
    "engine_options",
    "timeout_seconds",
    "num_generators",
    "gpus_per_generator",
    "num_scorers",
    "gpus_per_scorer",
    "balance_seconds",
    "responses_per_generator",
    "cache_tokens",
    "problems_per_part",
}
"""Keys that say how a stage runs, not what it makes: they may change between a kill and the next start."""


class RunConfig(Section):
    """The whole run. Field names are TOML section names; `import_` is `[import]`."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    prompt: PromptSection = PromptSection()
    problems: ProblemsSection = ProblemsSection()
    arithmetic: ArithmeticSection = ArithmeticSection()
    warmup: WarmupSection = WarmupSection()
    generate: GenerateSection = GenerateSection()
    label: LabelSection = LabelSection()
    import_: ImportSection = Field(ImportSection(), alias="import")
    reference: ReferenceSection = ReferenceSection()
    step_label: StepLabelSection = StepLabelSection()
    select: SelectSection = SelectSection()
    train: TrainSection = TrainSection()
    score: ScoreSection = ScoreSection()
    rerank: RerankSection = RerankSection()
    evaluate: EvaluateSection = EvaluateSection()
    processbench: ProcessBenchSection = ProcessBenchSection()
    policy: PolicySection = PolicySection()
    search: SearchSection = SearchSection()
    serve: ServeSection = ServeSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.arithmetic.min_operations > self.arithmetic.max_operations:
            raise ValueError("arithmetic.min_operations must not exceed arithmetic.max_operations")
        if self.aggregation not in self.rerank.aggregations:
            default = "" if self.evaluate.aggregation else f", the default of reward {self.reward},"
            raise ValueError(f"evaluate.aggregation {self.aggregation!r}{default} must be one of rerank.aggregations")
        if self.run.dir.resolve() in [path.resolve() for path in self.select.mix]:
            raise ValueError(f"select.mix names {str(self.run.dir)!r}, which is this run's own folder (run.dir)")
        if self.train.objective == "kto" and not self.reference.mismatched:
            raise ValueError("train.objective 'kto' needs reference.mismatched of at least 1 (got 0)")
        if self.reference.mismatched and self.reference.logprobs == "sampled":
            raise ValueError("reference.mismatched needs reference.logprobs 'compute': nobody sampled such responses")
        if self.reference.logprobs == "sampled" and (self.reference.model or self.import_.source):
            raise ValueError(
                "reference.logprobs = 'sampled' needs responses sampled here from the reference model itself"
            )
        return self

    @model_validator(mode="after")
    def _step_labels_can_be_made(self) -> RunConfig:
        section = self.step_label
        needs_them = self.train.objective.startswith("step_") and self.train.step_labels != "outcome"
        if needs_them and section.method == "none":
            raise ValueError(f"train.objective {self.train.objective!r} needs step labels: set step_label.method")
        if section.method == "monte_carlo" and self.generate.temperature == 0 and section.num_completions > 1:
            raise ValueError(
                "generate.temperature 0 makes all completions equal: step_label.num_completions must be 1 "
                f"(got {section.num_completions})"
            )
        if section.method == "truth" and (self.import_.source or self.problems.train != "arithmetic"):
            source = self.import_.source or self.problems.train
            raise ValueError(f"step_label.method 'truth' needs problems.train 'arithmetic' (got {source!r})")
        if section.method == "truth" and self.reference.step_rule != "newline":
            raise ValueError(
                "step_label.method 'truth' checks lines: reference.step_rule must be 'newline' "
                f"(got {self.reference.step_rule!r})"
            )
        return self

    def stages(self) -> tuple[str, ...]:
        """Stages of this run, in order."""
        skipped = {"generate", "label"} if self.import_.source else {"import"}
        if not self.warmup.enabled:
            skipped.add("warmup")
        if self.score.model is not None:
            skipped |= {"step_label", "train"}
        if self.step_label.method == "none":
            skipped.add("step_label")
        return tuple(stage for stage in STAGES if stage not in skipped)

    @property
    def reward(self) -> str:
        """What a step's reward is: `train.reward`, or of a published model its `score.style`."""
        return self.score.style or self.train.reward

    @property
    def aggregation(self) -> Aggregation:
        """`evaluate.aggregation`, or by what the reward says: log-ratios add up, a head that learnt from outcomes means
        the whole response at its last step, and one that learnt from steps means each, so that the worst one counts."""
        if self.evaluate.aggregation is not None:
            return self.evaluate.aggregation
        if self.reward == "log_ratio":
            return "sum"
        of_steps = self.train.objective.startswith("step_") if self.score.style is None else self.reward != "value_head"
        return "min" if of_steps else "last"

    @property
    def train_seed(self) -> int:
        return self.run.seed if self.train.seed is None else self.train.seed

    def measurements(self) -> tuple[str, ...]:
        """Measurements that can be taken of this run: how well it answers only of a language model trained here."""
        is_model = self.score.model is None and self.train.reward != "value_head"
        return tuple(name for name in MEASUREMENTS if is_model or name != "policy")

    def before(self, stage: str) -> tuple[str, ...]:
        """What has to be finished before this stage or measurement, in order."""
        stages = self.stages()
        if stage in MEASUREMENTS:
            base = self._base(stage)
            return () if base is None else stages[: stages.index(base) + 1]
        return stages[: stages.index(stage)]

    def _base(self, measurement: str) -> str | None:
        base = MEASUREMENTS[measurement]
        return base if base in self.stages() else _WITHOUT_TRAINING.get(measurement)

    def onwards(self, stage: str) -> tuple[str, ...]:
        """This stage or measurement and all that build on it, in order."""
        if stage in MEASUREMENTS:
            return (stage,)
        later = self.stages()[len(self.before(stage)) :]
        return (*later, *(name for name in MEASUREMENTS if self._base(name) in later))

    def section(self, name: str) -> Section:
        """The section of this name in the file."""
        return getattr(self, "import_" if name == "import" else name)

    def identity(self, stage: str) -> dict[str, Any]:
        """`section.key` -> value of all settings that change what a stage makes (not how fast or where it runs)."""
        values: dict[str, Any] = {}
        if stage not in ("evaluate",):
            values["run.seed"] = self.run.seed
        for part in _IDENTITY[stage]:
            name, _, only = part.partition(".")
            section = self.section(name).model_dump(mode="json", include={only} if only else None)
            values |= {f"{name}.{key}": value for key, value in section.items() if key not in _RESOURCES}
        if "evaluate.aggregation" in values:
            values["evaluate.aggregation"] = self.aggregation
        if "search.aggregation" in values:
            values["search.aggregation"] = self.search.aggregation or self.aggregation
        return values

    def resources(self, stage: str) -> dict[str, Any]:
        """Key -> value of the stage's settings that say how it runs, not what it makes."""
        section = self.section(stage).model_dump(mode="json")
        return {key: value for key, value in section.items() if key in _RESOURCES}


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a file and apply `section.key=value` overrides (value in TOML syntax; bare words are strings).

    Raises `UserError` with every wrong key named as `section.key`.
    """
    data = read_run_settings(path)
    apply_overrides(data, overrides or [])
    return parse_config(data)


def read_run_settings(path: str | Path, what: str = "config file") -> dict[str, Any]:
    """The same of a file that must be of one run: an experiment's would only be a list of unknown keys."""
    data = read_settings(path, what)
    if "variant" in data:
        raise UserError(
            f"{str(path)!r} is an experiment file, not the config of one run: prm-ray experiment {path} runs its "
            f"variants (--list shows them), prm-ray plan {path} --variant NAME plans one"
        )
    return data


def read_settings(path: str | Path, what: str = "config file") -> dict[str, Any]:
    """The sections of a file as they stand there. Raises `UserError` if it is not there or not TOML (or JSON)."""
    if not Path(path).is_file():
        raise UserError(f"{what} {str(path)!r} does not exist")
    path = Path(path)
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {str(path)!r} is not valid {kind}: {error}") from None


def parse_config(data: dict[str, Any]) -> RunConfig:
    """Raises `UserError` with every wrong key named as `section.key`."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(validation_message(error)) from None


def validation_message(error: ValidationError) -> str:
    return "; ".join(_one_line(item) for item in error.errors())


def _one_line(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = {"extra_forbidden": "unknown key"}.get(item["type"], item["msg"].removeprefix("Value error, "))
    value = "" if item["type"] == "extra_forbidden" or isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"{where}: {message}{value}" if where else f"{message}"
