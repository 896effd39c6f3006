"""What the CLI and the jobs share: reading a command line, and failing in one line with the right exit code.

Nothing heavy is imported on top, so that `--help` and a wrong config answer at once.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from prm_ray.errors import (
    ClusterError,
    EngineError,
    NonFiniteLossError,
    StorageError,
    TakenOverError,
    UserError,
)

if TYPE_CHECKING:
    from prm_ray.config import RunConfig

_LAST_WORDS_SECONDS = 0.5
"""How long what a worker said before a failure may take to get here; Ray waits as long where a program ends well."""

_NOBODY_READS = 128 + signal.SIGPIPE
"""The exit code that shells give a program that ends because of it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line."""

    def __init__(self, prog: str, description: str | None, epilog: str | None = None, allow_abbrev: bool = True):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=allow_abbrev,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        message = message.replace(", section.key=value", "")  # argparse counts it as required, which it is not
        _fail(2, f"{message} (see {self.prog} --help)")


def read_command_line(description: str | None, argv: Sequence[str] | None = None) -> RunConfig:
    """Parse `CONFIG [section.key=value ...]` of a job. A mistake ends the process with one line and exit code 2."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "job")
    parser = Parser(f"python -m {module}", description)
    add_config_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    with failing_in_one_line():
        from prm_ray.config import load_config
        from prm_ray.runlog import set_up_logging

        set_up_logging()
        return load_config(args.config, args.overrides)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="TOML file of the run")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="replace one value of the file, e.g. train.beta=0.1"
    )


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turn the failures a user can do something about into one line on stderr.

    Exit codes: 2 = bad input, 1 = the work failed, 130 = interrupted, 141 = whoever read our output has
    left. Anything unknown keeps its traceback (and exits with 1): there the place in the code is what helps.
    """
    had_ray = _ray_runs()
    try:
        with _ending_quietly_where_nobody_reads():
            yield
    except UserError as error:
        code, message = 2, str(error)
    except (NonFiniteLossError, EngineError, StorageError, TakenOverError, ClusterError) as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code = 130
        message = "interrupted; what is finished is kept, and the same command (without --fresh) goes on from there"
    else:
        return
    try:  # Ray prints what workers said until it is shut down, and the last line is to be ours
        if _ray_runs() and not had_ray:
            time.sleep(_LAST_WORDS_SECONDS)
            sys.modules["ray"].shutdown()
    finally:
        _fail(code, message)


@contextmanager
def _ending_quietly_where_nobody_reads() -> Iterator[None]:
    """Exit code 141 if whoever read our output has left, as `head` does once it has its lines."""
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes when Python ends
        raise SystemExit(_NOBODY_READS) from None


def _flush() -> None:
    """Now, for at the end of Python nobody could say anything to a failure."""
    if sys.stdout is not None:  # as where it was closed before we began
        sys.stdout.flush()


def _reader_has_left() -> bool:
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # no file of the system
        return False
    return any(what & (select.POLLERR | select.POLLHUP) for _, what in output.poll(0))


def _ray_runs() -> bool:
    """Without importing it."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and is_initialized()


def _fail(code: int, message: str) -> NoReturn:
    print(f"prm-ray: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
