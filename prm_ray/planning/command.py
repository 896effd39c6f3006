"""`prm-ray plan`: its arguments, and what it prints. Nothing heavy is imported on top."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from prm_ray.entry import Parser, add_config_arguments

if TYPE_CHECKING:
    from prm_ray.config import RunConfig

HELP = "before a run: does it fit, how long does it take, and what to change"
_EXAMPLES = """examples:
  prm-ray plan configs/llama31_8b_implicit_prm.toml --gpus 8xA100-80GB
  prm-ray plan configs/gsm8k.toml --gpus 4xH100 --nodes 2 train.num_workers=8 problems.num_train=7473
  prm-ray plan configs/gsm8k.toml --gpus 8x96GB@400TFLOPs@2TB/s --json
  prm-ray plan configs/demo.toml --cpu
  prm-ray plan configs/experiments/objectives.toml --variant dpo --cpu

Exit code 0 = it fits, or no stage asks for a GPU and nothing was judged; 1 = it does not fit; 2 = bad input.
Formulas and assumptions: docs/planning.md
"""
_LENGTH = "mean length of a {} (default: {}; of arithmetic problems their own)"


def parser(verb: str) -> Parser:
    parser = Parser(f"prm-ray {verb}", HELP[0].upper() + HELP[1:] + ".", _EXAMPLES)
    add_config_arguments(parser)
    machines = parser.add_mutually_exclusive_group(required=True)
    machines.add_argument("--gpus", metavar="NxNAME", help="GPUs of a node: 8xH100, 4xA100-80GB, 8x96GB@400TFLOPs ...")
    machines.add_argument("--cpu", action="store_true", help="machines without GPUs, like this one")
    parser.add_argument("--nodes", metavar="N", type=int, default=1, help="how many such machines (default: 1)")
    parser.add_argument("--variant", metavar="NAME", help="plan a run of this variant; CONFIG is an experiment file")
    parser.add_argument("--prompt-tokens", metavar="N", type=float, help=_LENGTH.format("prompt", 132))
    parser.add_argument("--response-tokens", metavar="N", type=float, help=_LENGTH.format("response", 416))
    parser.add_argument("--terms", action="store_true", help="show what fills the memory of every stage")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the plan; ends the process, with 1 if the run does not fit."""
    import json

    from prm_ray.planning.hardware import cluster_of_cpus, cluster_of_gpus
    from prm_ray.planning.plan import plan_run
    from prm_ray.planning.report import as_json, in_words

    cluster = cluster_of_cpus(args.nodes) if args.cpu else cluster_of_gpus(args.gpus, args.nodes)
    plan = plan_run(_config(args), cluster, args.prompt_tokens, args.response_tokens)
    name = args.config if args.variant is None else f"{args.variant} of {args.config}"
    print(json.dumps(as_json(plan), indent=2) if args.json else in_words(plan, name, args.terms))
    sys.exit(0 if plan.fits else 1)


def _config(args: argparse.Namespace) -> RunConfig:
    from prm_ray.config import load_config
    from prm_ray.errors import UserError

    if args.variant is None:
        return load_config(args.config, args.overrides)
    from prm_ray.experiment.grid import load_experiment

    runs = load_experiment(args.config, args.overrides).compared
    found = next((run for run in runs if run.variant.name == args.variant), None)  # seeds need the same
    if found is None:
        names = ", ".join(dict.fromkeys(run.variant.name for run in runs))
        raise UserError(f"--variant {args.variant!r} must be a variant of {args.config} that is trained: {names}")
    return found.config
