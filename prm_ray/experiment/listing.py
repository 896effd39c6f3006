"""What `--list` shows: every variant, and how many of its runs are finished. Nothing heavy is loaded for it."""

from __future__ import annotations

from prm_ray.experiment.grid import Experiment, GridRun, is_done


def listing(experiment: Experiment) -> str:
    by_variant: dict[str, list[GridRun]] = {}
    for run in experiment.runs:
        by_variant.setdefault(run.variant.name, []).append(run)
    width = max(map(len, by_variant)) + 2
    lines = [f"{experiment.title}: {len(experiment.compared)} runs in {experiment.folder}"]
    for name, runs in by_variant.items():
        variant, done = runs[0].variant, sum(is_done(run) for run in runs)
        needs = [need.rpartition("-")[0] or need for need in runs[0].needs]
        about = [variant.group if not variant.data_only else "data", *(f"needs {need}" for need in needs)]
        lines.append(f"  {name:<{width}}{done}/{len(runs)} done  {variant.label or name} ({', '.join(about)})")
    return "\n".join(lines)
