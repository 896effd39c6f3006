"""The demo: the whole pipeline with a small real model, then one held-out problem reranked over HTTP.

prm-ray demo [--fresh [STAGE]] [section.key=value ...]
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from prm_ray.client import Client, ResponseReward
from prm_ray.config import RunConfig
from prm_ray.runlog import log
from prm_ray.tables import FOLDERS, StageFolder

_SAMPLE_SECONDS = 1.0


def run(config: RunConfig) -> None:
    """Run all stages, serve the result on a free loopback port, rerank one problem's candidates, show it."""
    from prm_ray.serve import server
    from prm_ray.stages import pipeline

    start = time.monotonic()
    with _PeakMemory() as memory:
        pipeline.run_all(config)
        candidates = pick_problem(config)
        base_url = server.start(_on_port(config, server.free_port()))
        try:
            log.info("asking %s for the rewards of %d candidates", base_url, len(candidates))
            with Client(base_url) as client:
                rewards = client.rewards(candidates[0]["problem"], [row["text"] for row in candidates])
        finally:
            server.stop()
        _say(picked_text(candidates, rewards, config.aggregation))
        _say(_files_text(config.run.dir))
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    _say(f"took {minutes} min {seconds} s, peak memory {memory.peak_bytes / 2**30:.1f} GiB over all processes")


def pick_problem(config: RunConfig) -> list[dict[str, Any]]:
    """Candidates of the first held-out problem that has right and wrong ones (else of the first): no cherry-picking."""
    columns = ["prompt_id", "problem", "gold_answer", "sample_index", "text", "answer", "correct"]
    problems: dict[str, list[dict[str, Any]]] = {}
    for row in StageFolder(config.run.dir, "score").rows(columns):
        if row["text"]:
            problems.setdefault(row["prompt_id"], []).append(row)
    mixed = (rows for rows in problems.values() if {row["correct"] for row in rows} >= {True, False})
    chosen = next(mixed, None) or next(iter(problems.values()))
    return sorted(chosen, key=lambda row: row["sample_index"])


def picked_text(candidates: list[dict[str, Any]], rewards: list[ResponseReward], aggregation: str) -> str:
    """What the server picked, step by step, and how it ranked the rest; what has no reward comes last."""
    ranked = sorted(rewards, key=lambda each: (each.reward is None, -(each.reward or 0.0)))
    lines = [
        f"problem     {candidates[0]['problem']}   (held out; right answer: {candidates[0]['gold_answer']})",
        f"candidates  {len(candidates)}, ranked over HTTP by the {aggregation} of their step rewards:",
        f"  {'reward':>8}  {'answer':<10}",
    ]
    for each in ranked:
        row = candidates[each.index]
        reward = "error" if each.reward is None else f"{each.reward:+.3f}"
        lines.append(f"  {reward:>8}  {row['answer'] or '-':<10}  {_verdict(row['correct'])}")
    lines.append(f"the pick, answer {candidates[ranked[0].index]['answer']}, step by step:")
    lines += [f"  {step.reward:>+8.3f}  {' '.join(step.text.split())}" for step in ranked[0].steps]
    return "\n".join(lines)


def _verdict(correct: bool | None) -> str:
    return {True: "right", False: "wrong", None: "could not be judged"}[correct]


def _files_text(run_dir: Path) -> str:
    folder = run_dir / FOLDERS["evaluate"]
    files = sorted(path for pattern in ("*.html", "*.png") for path in folder.glob(pattern))
    return "\n".join(f"written     {path.resolve()}" for path in files)


def _on_port(config: RunConfig, port: int) -> RunConfig:
    serve = config.serve.model_copy(update={"host": "127.0.0.1", "port": port, "num_replicas": 1})
    return config.model_copy(update={"serve": serve})


def _say(text: str) -> None:
    print(f"\n{text}" if text else "", flush=True)


class _PeakMemory:
    """Samples the resident memory of this process and all its children, among them a local Ray's workers."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(os.getpid()))
            if self._over.wait(_SAMPLE_SECONDS):
                return


def _tree_bytes(root: int) -> int:
    """Memory of a process and all below it, pages shared with others left out; 0 where there is no /proc."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            _, resident, shared, *_ = (folder / "statm").read_text().split()
            pages[int(folder.name)] = int(resident) - int(shared)
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree and pid not in tree}:
        tree |= more
    return sum(pages.get(pid, 0) for pid in tree) * os.sysconf("SC_PAGE_SIZE")
