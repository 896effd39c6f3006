"""A plan in words, and as JSON."""

from __future__ import annotations

from typing import Any

from prm_ray.planning.hardware import GIB
from prm_ray.planning.plan import Plan
from prm_ray.planning.stageplan import StagePlan

_COLUMNS = ("stage", "where", "GiB a worker", "of", "tokens/s", "hours", "GPU hours", "fits")


def in_words(plan: Plan, name: str, with_terms: bool = False) -> str:
    """A head, a table with a line a stage, notes, and what to change."""
    lines = [*_head(plan, name), "", *_table([_COLUMNS, *(_row(stage) for stage in plan.stages)]), ""]
    if plan.seconds is not None:
        lines.append(
            f"all of these: {_hours(plan.seconds)} hours; loading models, labelling and the report are not in it"
        )
    elif None in (plan.question.work.num_train, plan.question.work.num_test):
        section = "import" if plan.question.config.import_.source else "problems"
        lines.append(f"hours are not known before the data is there: set {section}.num_train and {section}.num_test")
    for stage in plan.stages:
        lines += [f"{stage.stage}: {note}" for note in stage.notes]
    shown = [stage for stage in plan.stages if stage.terms and (with_terms or stage.fits is False)]
    for stage in shown:
        lines += ["", f"{stage.stage}, GiB a worker:", *_terms(stage)]
    return "\n".join([*lines, "", *_verdict(plan)])


def as_json(plan: Plan) -> dict[str, Any]:
    """Bytes, seconds, tokens and operations; null = not known or not judged."""
    work, cluster = plan.question.work, plan.question.cluster
    return {
        "fits": plan.fits,
        "seconds": plan.seconds,
        "cluster": {
            "device": cluster.device.name,
            "memory_bytes": cluster.device.memory,
            "per_node": cluster.per_node,
            "nodes": cluster.nodes,
        },
        "model": {"parameters": plan.question.shape.parameters, "shape_from": plan.source, **vars(plan.question.shape)},
        "work": vars(work),
        "stages": [_stage_json(plan, stage) for stage in plan.stages],
    }


def _stage_json(plan: Plan, stage: StagePlan) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "where": stage.where,
        "fits": stage.fits,
        "need_bytes": stage.need if stage.terms else None,
        "have_bytes": stage.have,
        "terms_bytes": stage.terms,
        "allowance_bytes": stage.spare,
        "tokens": stage.tokens,
        "tokens_per_second": stage.tokens_per_second,
        "seconds": stage.seconds,
        "flops": stage.flops,
        "gpus": stage.gpus,
        "notes": stage.notes,
        "change": plan.advice.get(stage.stage),
    }


def _head(plan: Plan, name: str) -> list[str]:
    question, work = plan.question, plan.question.work
    shape, config = question.shape, question.config
    number_format = "bfloat16" if question.number == 2 else "float32"
    exactly = "" if shape.is_counted else f" (kind {shape.kind!r}, counted as if it were a Llama)"
    problems = " + ".join("?" if number is None else f"{number:,}" for number in (work.num_train, work.num_test))
    longest = work.longest(shape.context)
    most = "with no limit (select.max_response_tokens sets one)" if longest is None else f"at most {longest:,} together"
    lengths = f"{work.prompt_tokens:g} + {work.response_tokens:g} tokens"
    return [
        f"{name} on {question.cluster}",
        f"{config.model.name}: {shape.parameters / 1e9:.2f} billion parameters, {number_format} "
        f"(shape: {plan.source}){exactly}",
        f"{problems} problems x {work.num_responses} responses of {lengths} on average "
        f"(--prompt-tokens, --response-tokens), {most}",
    ]


def _row(stage: StagePlan) -> tuple[str, ...]:
    rate = stage.tokens_per_second
    return (
        stage.stage,
        stage.where,
        f"{stage.need / GIB:.1f}" if stage.terms else "",
        f"{stage.have / GIB:.1f}" if stage.terms and stage.have is not None else "",
        f"{rate:,.0f}" if rate else "",
        _hours(stage.seconds) if stage.seconds is not None else "",
        _hours(stage.seconds * stage.gpus) if stage.seconds is not None and stage.gpus else "",
        {True: "yes", False: "NO", None: ""}[stage.fits],
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The first two columns to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _terms(stage: StagePlan) -> list[str]:
    terms = stage.terms | {"allowance for what is not counted": stage.spare}
    return [f"  {size / GIB:7.1f}  {name}" for name, size in sorted(terms.items(), key=lambda each: -each[1])]


def _verdict(plan: Plan) -> list[str]:
    if all(stage.fits is None for stage in plan.stages):
        return ["Nothing was judged: no stage asks for a GPU (gpus_per_worker, gpus_per_engine); --cpu plans CPUs."]
    if plan.fits:
        return ["It fits."]
    lines = []
    for stage, words in plan.advice.items():
        known = f"{stage} fits with: {' '.join(words)}"
        lines.append(known if words else f"{stage} does not fit, and nothing that was tried makes it fit")
    return ["It does not fit.", *lines]


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"
