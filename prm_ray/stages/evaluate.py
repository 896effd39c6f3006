"""evaluate: picks/ and scores/ -> report/: report.json, report.html, accuracy.png, and a table on stdout."""

from __future__ import annotations

from typing import Any

from prm_ray.config import RunConfig
from prm_ray.stages.candidates import Survey, read_problems, survey
from prm_ray.stages.costs import scoring_cost, stage_rows
from prm_ray.stages.gallery import gallery
from prm_ray.stages.measure import accuracy_figures, auc_figures, prm_accuracy_figures, read_accuracies
from prm_ray.stages.plots import write_png
from prm_ray.stages.report import headline, text_table, write_page
from prm_ray.stages.result import StageResult
from prm_ray.stages.stepcheck import step_check
from prm_ray.stages.trainingsets import needs_step_labels
from prm_ray.tables import StageFolder, write_json


def run(config: RunConfig, folder: StageFolder) -> StageResult:
    """Measure the run and write its report."""
    scores = StageFolder(config.run.dir, "score")
    picks = StageFolder(config.run.dir, "rerank")
    found = survey(scores)
    problems = [problem for part in found.parts for problem in read_problems(scores, part)]
    accuracies = read_accuracies(config, problems, picks)
    report: dict[str, Any] = {
        "headline": "",
        "aggregation": config.aggregation,
        "reward": config.reward,
        "with_reference": config.score.with_reference,
        "has_step_labels": needs_step_labels(config),
        "vote_weight": config.rerank.vote_weight,
        "sizes": accuracies.sizes,
        "seed": config.run.seed,
        "num_bootstrap": config.evaluate.num_bootstrap,
        **_counts(found),
        **accuracy_figures(accuracies),
        "auc": auc_figures(config, problems),
        "prm_accuracy": prm_accuracy_figures(config, problems),
        "step_check": step_check(config, scores, found),
        "response_tokens": _details(StageFolder(config.run.dir, "train")).get("response_tokens"),
        "stages": stage_rows(config),
        "scoring_cost": scoring_cost(config),
        "config": config.model_dump(mode="json", by_alias=True),
    }
    report["code_revision"] = next((row["code_revision"] for row in reversed(report["stages"])), None)
    report["headline"] = headline(report)
    write_json(folder.workspace / "report.json", report)
    write_page(report, gallery(config, scores, found, problems), folder.workspace / "report.html")
    write_png(report, folder.workspace / "accuracy.png")
    table = text_table(report)
    print(f"{table}\n\n{report['headline']}\nreport: {folder.path / 'report.html'}", flush=True)
    details = {"headline": report["headline"], "table": table}
    return StageResult(rows_in=found.num_rows, rows_out=len(problems), failed=found.failed, details=details)


def _details(folder: StageFolder) -> dict[str, Any]:
    return folder.manifest().get("details", {}) if folder.is_done() else {}


def _counts(found: Survey) -> dict[str, Any]:
    counts = found.num_candidates.values()
    return {
        "num_problems": sum(count > 0 for count in counts),
        "num_problems_without_candidates": sum(count == 0 for count in counts),
        "num_candidates": sum(counts),
        "num_candidates_that_could_not_be_judged": found.num_unjudged,
        "failed": found.failed,
    }
