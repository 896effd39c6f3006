"""The verbs for a cluster's jobs: submit, status, stop, logs. Only argparse is imported on top."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prm_ray.entry import Parser
from prm_ray.errors import UserError

if TYPE_CHECKING:
    from prm_ray.submitting.jobs import Jobs

HELP = {
    "submit": "run a verb as a job on a Ray cluster, show its log, and end with its exit code",
    "status": "jobs of a cluster, or one of them: state, stage, since when",
    "stop": "stop a job, and wait until it has",
    "logs": "what a job printed",
}
VerbParser = Callable[[str, list[str]], tuple[list[str], argparse.Namespace]]
"""Words behind a verb -> the same, `--fresh` joined to its stage, and what the verb's own parser makes of them."""

_ADDRESS = """The cluster is found at --address, else at RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else at http://127.0.0.1:8265.
A cluster with token authentication lets in who has set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."""
_EXAMPLES = {
    "submit": """examples:
  prm-ray submit run configs/gsm8k.toml run.dir=/shared/runs/gsm8k --address http://HEAD:8265
  prm-ray submit run configs/gsm8k.toml run.dir=/shared/runs/gsm8k --chain --retries 2
  prm-ray submit train configs/gsm8k.toml run.dir=/shared/runs/gsm8k --fresh --no-wait
  prm-ray submit experiment configs/experiments/objectives.toml --dir /shared/runs/objectives
  (what is sent, and what must be where: docs/running.md, "Submitting jobs")""",
    "status": "examples:\n  prm-ray status\n  prm-ray status train-gsm8k-3f9a1c\n",
    "stop": "example:\n  prm-ray stop train-gsm8k-3f9a1c\n",
    "logs": "example:\n  prm-ray logs train-gsm8k-3f9a1c --follow\n",
}


def run(verb: str, words: list[str], verb_parser: VerbParser) -> None:
    """One of the verbs of `HELP`; `words` are those behind it. Exits with the job's code where it waits for one."""
    if verb == "submit":
        _submit(words, verb_parser)
        return
    args = _job_parser(verb).parse_args(words)
    {"status": _status, "stop": _stop, "logs": _logs}[verb](_jobs(args.address), args)


def _submit(words: list[str], verb_parser: VerbParser) -> None:
    parser = _submit_parser()
    args, rest = parser.parse_known_args(words)
    from prm_ray.submitting.work import VERBS, read_work

    if not rest or rest[0] not in VERBS:
        what = f"{rest[0]!r} is no verb for a cluster" if rest else "no verb"
        parser.error(f"{what}; submit takes {', '.join(VERBS)}")
    if args.chain and (rest[0] != "run" or args.no_wait):
        parser.error("--chain is for run, and waits: each job is submitted when the one before it has succeeded")
    if args.no_wait and args.retries:
        parser.error("--retries needs to wait for the job: leave out --no-wait")
    spelled, asked = verb_parser(rest[0], rest[1:])
    root = args.working_dir.absolute()
    if not root.is_dir():
        raise UserError(f"--working-dir {str(args.working_dir)!r} must be a folder")
    environment, resources = dict(map(_variable, args.env)), _resources(args)
    work = read_work(rest[0], spelled, asked, root)

    from prm_ray.runlog import log
    from prm_ray.submitting.jobs import Surroundings
    from prm_ray.submitting.package import choose_files
    from prm_ray.submitting.sender import Sender

    package = choose_files(root, work.files)
    jobs = _jobs(args.address)
    log.info("sending %s", package.in_words())
    with tempfile.TemporaryDirectory() as temp:
        package.write(archive := Path(temp) / "package.zip")
        around = Surroundings(archive, environment, resources)
        sender = Sender(jobs, around, args.submission_id, args.retries, args.force)
        if args.no_wait:
            print(sender.submit(work))
        elif code := (sender.run_chain(work) if args.chain else sender.run(work)):
            sys.exit(code)


def _jobs(address: str | None) -> Jobs:
    from prm_ray.runlog import set_up_logging
    from prm_ray.submitting.client import connect
    from prm_ray.submitting.jobs import Jobs

    set_up_logging()
    return Jobs(connect(address))


def _status(jobs: Jobs, args: argparse.Namespace) -> None:
    from prm_ray.submitting.status import one_job, table

    print(table(jobs.all()) if args.job is None else one_job(jobs.info(args.job), jobs.log_text(args.job)))


def _stop(jobs: Jobs, args: argparse.Namespace) -> None:
    from prm_ray.submitting.jobs import has_ended, how_it_ended

    job = jobs.info(args.job)
    if has_ended(job):
        print(f"job {args.job} has ended already: it {how_it_ended(job)}")
    else:
        print(f"job {args.job} is {job.status}: asking it to stop", file=sys.stderr)
        print(f"job {args.job} {how_it_ended(jobs.stop(args.job))}; what is finished is kept")


def _logs(jobs: Jobs, args: argparse.Namespace) -> None:
    from prm_ray.submitting.jobs import exit_code

    jobs.info(args.job)  # before anything is followed: is there such a job?
    if not args.follow:
        print(jobs.log_text(args.job), end="")
    elif code := exit_code(jobs.follow(args.job)):
        sys.exit(code)


def _submit_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "prm-ray submit",
        "Run a verb as a job on a Ray cluster, show its log, and end with its exit code.\n\n"
        "The working folder is sent along. run.dir must be an absolute path on storage that all nodes share.\n"
        "Ctrl-C ends this command, not the job.\n\n" + _ADDRESS,
        _EXAMPLES["submit"],
        allow_abbrev=False,
    )
    parser.usage = "prm-ray submit VERB CONFIG [section.key=value ...] [--fresh [STAGE]] [options]"
    _add_address(parser)
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and end")
    parser.add_argument(
        "--chain", action="store_true", help="of run: a job a stage, each submitted when the one before has succeeded"
    )
    parser.add_argument(
        "--retries", metavar="N", type=_count, default=0,
        help="submit a job that failed up to N times again; it goes on with what is there (not after bad input)",
    )  # fmt: skip
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if another job works in the same run.dir: tables stay whole; --fresh removes what it made",
    )
    parser.add_argument(
        "--submission-id", metavar="ID", type=_job_id, help="the job's id (of a chain its beginning); else one is made"
    )
    parser.add_argument(
        "--working-dir", metavar="DIR", type=Path, default=Path("."), help="the folder that is sent (default: this one)"
    )
    parser.add_argument(
        "--env", metavar="KEY[=VALUE]", action="append", default=[],
        help="environment variable of the job and its workers, without =VALUE as it is here; the dashboard shows them",
    )  # fmt: skip
    for flag, what in (("cpus", "CPUs"), ("gpus", "GPUs")):
        parser.add_argument(
            f"--entrypoint-num-{flag}", metavar="N", type=_amount, help=f"{what} that the job's own process takes up"
        )
    parser.add_argument(
        "--entrypoint-label", metavar="KEY=VALUE", action="append", default=[],
        help="label of the nodes where the job's own process may run (default: the head)",
    )  # fmt: skip
    return parser


def _job_parser(verb: str) -> argparse.ArgumentParser:
    parser = Parser(f"prm-ray {verb}", f"{HELP[verb][0].upper()}{HELP[verb][1:]}.\n\n{_ADDRESS}", _EXAMPLES[verb])
    parser.add_argument("job", metavar="ID", nargs="?" if verb == "status" else None, help="the job's id")
    _add_address(parser)
    if verb == "logs":
        parser.add_argument(
            "--follow", action="store_true", help="go on until the job has ended, and end with its exit code"
        )
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="URL", help="the cluster's dashboard, such as http://HEAD:8265")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of at least 0 (got {text!r})")
    return int(text)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0 (got {text!r})")
    return amount


def _job_id(text: str) -> str:
    """Ray takes any, and then finds none with a slash in it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", text):
        raise argparse.ArgumentTypeError(
            f"must be of letters, digits, '.', '_' and '-', and begin with one of the first two (got {text!r})"
        )
    return text


def _variable(text: str) -> tuple[str, str]:
    name, has_value, value = text.partition("=")
    if not name.isidentifier() or (not has_value and name not in os.environ):
        raise UserError(f"--env {text!r} must be KEY=VALUE, or a variable that is set here")
    return name, value if has_value else os.environ[name]


def _resources(args: argparse.Namespace) -> dict[str, object]:
    labels = dict(_pair("--entrypoint-label", text) for text in args.entrypoint_label)
    wanted = {
        "entrypoint_num_cpus": args.entrypoint_num_cpus,
        "entrypoint_num_gpus": args.entrypoint_num_gpus,
        "entrypoint_label_selector": labels or None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _pair(option: str, text: str) -> tuple[str, str]:
    name, is_pair, value = text.partition("=")
    if not (name and is_pair):
        raise UserError(f"{option} {text!r} must be KEY=VALUE")
    return name, value
