"""The command `prm-ray <verb> CONFIG [section.key=value ...] [--fresh [STAGE]]`.

Only argparse is imported on top: `prm-ray --help` and a wrong config answer without loading torch, Ray or pydantic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prm_ray import makekey
from prm_ray.entry import Parser, add_config_arguments, add_overrides, failing_in_one_line
from prm_ray.errors import UserError
from prm_ray.planning import command as plan
from prm_ray.submitting import verbs as submitting

if TYPE_CHECKING:
    from prm_ray.config import RunConfig

STAGE_HELP = {
    "warmup": "fine-tune the model on worked solutions (optional)",
    "generate": "sample responses to the problems",
    "label": "judge each response's final answer: right or wrong",
    "import": "read responses and labels made elsewhere (instead of generate and label)",
    "reference": "cut responses into steps and cache the reference log-probs",
    "step_label": "label the steps of the training responses (optional, for objectives on step labels)",
    "train": "train the process reward model on the labels",
    "score": "compute step rewards and response rewards of the test candidates",
    "rerank": "pick by best-of-N, majority vote and weighted vote",
    "evaluate": "write the report: accuracy per method and N",
}
MEASUREMENT_HELP = {
    "processbench": "does the trained model find the first wrong step of ProcessBench's solutions?",
    "policy": "does the trained model still answer as well as the one it was trained from?",
    "search": "best-of-N, beam and tree search: generate and score at the same time",
}
_WITH_FOLDER = {**STAGE_HELP, **MEASUREMENT_HELP}
_VERBS = {
    "run": "run all stages of a config, skipping finished ones",
    **_WITH_FOLDER,
    "plan": plan.HELP,
    "serve": "serve the trained model over HTTP",
    "key": makekey.HELP,
    "demo": "run everything on this machine with a small real model, then rerank one problem over HTTP",
    "experiment": "train many variants of one config, each with several seeds, then compare them",
    "compare": "compare finished runs: one page, pictures and a table",
    **submitting.HELP,
}
_ALL = "all"
_EXAMPLES = {
    "demo": "demo run.seed=1",
    "search": """search configs/demo.toml search.num_problems=20 'search.strategies=["best_of_n", "beam"]'
  (strategies and settings: docs/searching.md)""",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `prm-ray` command. Exits with 2 on bad input, 1 on failed work, 130 when interrupted,
    141 when nobody reads the output any more."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in _VERBS:
        _top_parser().parse_args(words)
    verb = words[0]
    with failing_in_one_line():
        if verb in submitting.HELP:
            submitting.run(verb, words[1:], _parsed)
            return
        _, args = _parsed(verb, words[1:])
        if verb in _WITHOUT_CONFIG:
            _WITHOUT_CONFIG[verb](args)
            return
        config = _config(verb, args)
        if verb == "serve":
            _serve(config, args.yaml)
            return
        fresh_from = _fresh_from(verb, args.fresh, config)
        _dispatch(verb, config, fresh_from)


def _parsed(verb: str, words: list[str]) -> tuple[list[str], argparse.Namespace]:
    """Words behind a verb, `--fresh` spelled out, and what they mean. Raises `UserError` for a stage it cannot redo."""
    words = _fresh_spelled_out(words)
    args = _PARSERS.get(verb, _verb_parser)(verb).parse_intermixed_args(words)
    fresh = getattr(args, "fresh", None)
    if verb in _WITH_FOLDER and fresh not in (None, _ALL, verb):
        raise UserError(f"--fresh {fresh}: {verb} redoes its own stage only; prm-ray run redoes from {fresh} on")
    return words, args


def _dispatch(verb: str, config: RunConfig, fresh_from: str | None) -> None:
    from prm_ray.runlog import set_up_logging

    set_up_logging()
    from prm_ray.stages import pipeline

    if fresh_from:
        pipeline.clear_from(config, fresh_from)
    if verb == "demo":
        from prm_ray import demo

        demo.run(config)
    elif verb == "run":
        pipeline.run_all(config)
    else:
        pipeline.run_stage(config, verb)


def _serve(config: RunConfig, as_yaml: bool) -> None:
    from prm_ray.runlog import set_up_logging

    set_up_logging()
    from prm_ray.serve import server

    if as_yaml:
        server.print_manifest(config)
    else:
        server.run(config)


def _experiment(args: argparse.Namespace) -> None:
    from prm_ray.experiment.grid import load_experiment
    from prm_ray.experiment.listing import listing
    from prm_ray.runlog import set_up_logging

    experiment = load_experiment(args.file, args.overrides, args.dir)
    if args.list:
        print(listing(experiment))
        return
    set_up_logging()
    from prm_ray.experiment.execute import run_experiment

    fresh = "train" if args.fresh == _ALL else args.fresh
    if failures := run_experiment(experiment, args.only, fresh):
        sys.exit("\n".join(f"prm-ray: error: {line}" for line in failures))  # with exit code 1


def _compare(args: argparse.Namespace) -> None:
    from prm_ray.compare.compare import compare_words
    from prm_ray.runlog import set_up_logging

    set_up_logging()
    print(compare_words(args.runs, args.out, args.show))


_WITHOUT_CONFIG = {"experiment": _experiment, "compare": _compare, "key": makekey.run, "plan": plan.run}
"""Verbs that take no config of one run, or read it themselves."""


def _config(verb: str, args: argparse.Namespace) -> RunConfig:
    from prm_ray.config import load_config

    return load_config(shipped_config("demo") if verb == "demo" else args.config, args.overrides)


def shipped_config(name: str) -> Path:
    """Path of a config that comes with the software: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UserError(f"configs/{name}.toml is neither in {str(package)!r} nor beside it: the installation is incomplete")


def _fresh_from(verb: str, fresh: str | None, config: RunConfig) -> str | None:
    """The first stage to redo. A plain `--fresh` means this verb's own stage, or all stages for `run` and `demo`."""
    if fresh == _ALL:
        return verb if verb in _WITH_FOLDER else config.stages()[0]
    return fresh


def _fresh_spelled_out(words: list[str]) -> list[str]:
    """`--fresh train` -> `--fresh=train`, and `--fresh` before a config or an override -> `--fresh=all`.

    Otherwise argparse would take these for the name of a stage; a name that is none it refuses by itself.
    """
    spelled: list[str] = []
    for word in words:
        if spelled and spelled[-1] == "--fresh":
            is_name = word in _WITH_FOLDER or (word.isidentifier() and not Path(word).is_file())
            spelled[-1] = f"--fresh={word if is_name else _ALL}"
            if is_name:
                continue
        spelled.append(word)
    return spelled


def _top_parser() -> argparse.ArgumentParser:
    lines = [f"  {verb:<12} {text}" for verb, text in _VERBS.items()]
    parser = Parser(
        "prm-ray",
        "Process reward models from outcome labels only: made, trained, evaluated and served on Ray.\n\n"
        "verbs, in the order of a run:\n" + "\n".join(lines),
        "examples:\n"
        "  prm-ray demo                                        everything, with a small real model, on this machine\n"
        "  prm-ray run configs/debug.toml                      all stages; run it again to go on after a kill\n"
        "  prm-ray train configs/debug.toml train.beta=0.1     one stage with one value changed\n"
        "  prm-ray run configs/debug.toml --fresh train        redo train and everything after it\n"
        "  prm-ray serve configs/debug.toml serve.port=9000    the trained model over HTTP\n",
    )
    parser.usage = "prm-ray VERB CONFIG [section.key=value ...] [--fresh [STAGE]]"
    parser.add_argument(
        "verb", metavar="VERB", choices=list(_VERBS), help="one of the verbs above; VERB --help says more"
    )
    parser.add_argument("--version", action="version", version=f"prm-ray {_version()}")
    return parser


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    example = _EXAMPLES.get(verb, f"{verb} configs/debug.toml run.seed=1")
    parser = Parser(f"prm-ray {verb}", _sentence(_VERBS[verb]), f"example:\n  prm-ray {example}\n")
    if verb == "demo":
        add_overrides(parser)
    else:
        add_config_arguments(parser)
    if verb == "serve":
        parser.add_argument(
            "--yaml", action="store_true", help="print the Serve config file for a cluster (serve deploy) instead"
        )
        return parser
    parser.add_argument(
        "--fresh",
        metavar="STAGE",
        nargs="?",
        const=_ALL,
        choices=[_ALL, *_WITH_FOLDER],
        help="first remove the results of STAGE and all later stages "
        f"(without STAGE: {'from this stage on' if verb in _WITH_FOLDER else 'all of them'})",
    )
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _experiment_parser(verb: str) -> argparse.ArgumentParser:
    example = "configs/experiments/objectives.toml"
    parser = Parser(
        f"prm-ray {verb}",
        _sentence(_VERBS[verb]) + "\n\nFinished runs are skipped, so the same command goes on after a kill.",
        f"examples:\n  prm-ray {verb} {example} --list\n  prm-ray {verb} {example} --only ce dpo\n"
        f"  prm-ray {verb} {example} problems.num_train=100 --dir runs/quick\n",
    )
    parser.add_argument("file", metavar="FILE", help="TOML file of the experiment")
    add_overrides(parser)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these variants and those they build on")
    parser.add_argument("--list", action="store_true", help="show variants and how many of their runs are finished")
    parser.add_argument("--dir", metavar="DIR", help="folder of all runs, in place of the file's own")
    parser.add_argument(
        "--fresh",
        metavar="STAGE",
        nargs="?",
        const=_ALL,
        choices=[_ALL, *STAGE_HELP],
        help="first remove the results of STAGE (train, if none is named) and later stages of the variants asked for",
    )
    return parser


def _compare_parser(verb: str) -> argparse.ArgumentParser:
    parser = Parser(
        f"prm-ray {verb}",
        _sentence(_VERBS[verb]) + "\n\nRuns whose folders are called NAME-SEED are pooled by NAME; the first run's "
        "method is what the others are compared with.",
        f"example:\n  prm-ray {verb} runs/demo longer=runs/arithmetic --out comparison\n",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run, or NAME=FOLDER")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="where to write (default: comparison)")
    parser.add_argument("--show", metavar="NAME", nargs="+", default=[], help="methods that lines and examples are of")
    return parser


_PARSERS = {"experiment": _experiment_parser, "compare": _compare_parser, "key": makekey.parser, "plan": plan.parser}


def _version() -> str:
    from prm_ray.stages.provenance import package_version

    return package_version()


if __name__ == "__main__":
    main()
