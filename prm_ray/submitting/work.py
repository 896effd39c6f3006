"""What a job is to do: a verb of the command line, its words as they read on the cluster, and the files they name.

Read and checked before anything is sent, or anything heavy imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path

from prm_ray.config import MEASUREMENTS, STAGES, RunConfig, parse_config, read_run_settings, read_settings
from prm_ray.overrides import apply_overrides
from prm_ray.submitting.references import check_shared, inside, named_files
from prm_ray.tables import StageFolder

VERBS = ("run", *STAGES, *MEASUREMENTS, "serve", "experiment")
VERB_KEY, FOLDER_KEY, WORDS_KEY = "prm_ray_verb", "prm_ray_folder", "prm_ray_words"
"""Metadata of our jobs: by these they are known again."""

_STOP_SECONDS = 30
"""How long a stage that was asked to stop has to end its engines; Ray's own 3 s leave vLLM's processes behind."""


@dataclass(frozen=True)
class Work:
    verb: str
    words: tuple[str, ...]
    """CONFIG, seen from the working folder, and all behind it but --fresh."""
    folder: str
    """The run's folder, or the experiment's, on the cluster's storage."""
    files: tuple[str, ...]
    """Files of the working folder that are sent in any case."""
    fresh: str | None = None
    """The stage to redo from, or `all`."""
    stop_seconds: int = _STOP_SECONDS
    config: RunConfig | None = None
    """Of an experiment none: it has many."""

    @property
    def entrypoint(self) -> str:
        """`python -m` looks into the job's folder first: a checkout that was sent is what runs there, and where none
        was, the installed package, which has no folder `jobs/`."""
        fresh = [f"--fresh={self.fresh}"] if self.fresh else []
        return shlex.join(["python", "-m", "prm_ray", self.verb, *self.words, *fresh])

    @property
    def metadata(self) -> dict[str, str]:
        return {VERB_KEY: self.verb, FOLDER_KEY: self.folder, WORDS_KEY: shlex.join(self.words)}

    @property
    def writes(self) -> bool:
        return self.verb != "serve"

    def stage(self, name: str, fresh: bool) -> Work:
        """One stage of a run."""
        return dataclasses.replace(self, verb=name, fresh="all" if fresh else None)

    def again(self) -> Work:
        """The same once more, which goes on with what is there."""
        return dataclasses.replace(self, fresh=None)

    def new_id(self) -> str:
        """A job's id that people can tell from others: `train-gsm8k-3f9a1c`."""
        name = re.sub(r"[^\w.-]+", "-", Path(self.folder).name, flags=re.ASCII)
        return f"{self.verb}-{name}-{uuid.uuid4().hex[:6]}"


def read_work(verb: str, words: list[str], asked: argparse.Namespace, root: Path) -> Work:
    """`words` are those behind the verb, `asked` what the verb's own parser made of them, `root` the working folder.

    Raises `UserError` for whatever is wrong with the config, or would be on a cluster.
    """
    kept = [word for word in words if not word.startswith("--fresh")]
    if verb == "experiment":
        return _experiment(kept, asked, root)
    fresh = getattr(asked, "fresh", None)  # a server has nothing to redo
    settings = read_run_settings(asked.config)
    apply_overrides(settings, asked.overrides)
    config = parse_config(settings)
    folder = check_shared("run.dir", str(settings.get("run", {}).get("dir", "runs/default")))
    _check_stages(verb, config, fresh)
    files = [_config_file(asked.config, root, "config file"), *named_files(settings, verb, root)]
    stop_seconds = _STOP_SECONDS + (round(config.serve.longest_seconds) if verb == "serve" else 0)
    return Work(verb, _words(kept, asked.config, files[0]), folder, tuple(files), fresh, stop_seconds, config)


def _experiment(words: list[str], asked: argparse.Namespace, root: Path) -> Work:
    from prm_ray.experiment.grid import load_experiment

    experiment = load_experiment(asked.file, asked.overrides, asked.dir)
    experiment.chosen(asked.only)
    data = read_settings(asked.file)
    folder = check_shared("the experiment's --dir", str(asked.dir or data.get("dir") or f"runs/{experiment.name}"))
    base = Path(asked.file).parent / data["base"]
    files = [_config_file(asked.file, root, "experiment file"), _config_file(base, root, "base config")]
    for run in experiment.runs:
        files += named_files(run.settings, "run", root)
    return Work("experiment", _words(words, asked.file, files[0]), folder, tuple(dict.fromkeys(files)), asked.fresh)


def _check_stages(verb: str, config: RunConfig, fresh: str | None) -> None:
    """What the verb itself would say first: that the run has no such stage, or, where this machine sees the run's
    folder, that it was made with other settings."""
    from prm_ray.stages.pipeline import check_before, check_settings

    if verb in (*STAGES, *MEASUREMENTS):
        check_before(config, verb)
        if fresh is None and all(StageFolder(config.run.dir, before).is_done() for before in config.before(verb)):
            check_settings(config, (verb,))
    elif verb == "run" and fresh is None:
        check_settings(config)
    elif verb == "run" and fresh is not None and fresh != "all":
        check_before(config, fresh)


def _config_file(path: str | Path, root: Path, what: str) -> str:
    return inside(root, Path(path), f"{what} {str(path)!r}")


def _words(words: list[str], config: str, sent_as: str) -> tuple[str, ...]:
    place = words.index(config)
    return (*words[:place], sent_as, *words[place + 1 :])
