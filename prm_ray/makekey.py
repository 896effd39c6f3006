"""The verb `key`: an API key for the server. Only argparse is imported on top."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prm_ray.entry import Parser

HELP = "make an API key for the server"


def run(args: argparse.Namespace) -> None:
    from prm_ray.serve.keys import add_line, new_key

    key, line = new_key(args.name, args.requests_per_minute)
    if args.file is None:
        print(f"line of serve.api_keys_file:\n  {line}", file=sys.stderr)
    else:
        add_line(args.file, line)
        print(f"{args.file} lets in {args.name}; the key is shown this once:", file=sys.stderr)
    print(key)


def parser(verb: str) -> argparse.ArgumentParser:
    made = Parser(
        f"prm-ray {verb}",
        "Make an API key for the server.\n\nThe key goes to stdout; the file holds its SHA-256. A running server reads "
        "the file again when it changes:\ntake a line out to revoke its key.",
        f"example:\n  prm-ray {verb} trainer --file keys.txt --requests-per-minute 600\n",
    )
    made.add_argument("name", metavar="NAME", help="whose it is, for the log and the rate")
    made.add_argument("--file", metavar="FILE", type=Path, help="append the key's line to this file")
    made.add_argument(
        "--requests-per-minute",
        metavar="N",
        type=int,
        help="most requests (default: no limit); of them a sixth at once, at least one, the others spread evenly",
    )
    return made
