"""Right, wrong, or could not be judged: compares the final answer of a response with the gold answer.

Judging runs in a child process with a hard deadline, because computer algebra on a model's text may run for ever, eat
all memory or crash, and because its own time limits need the main thread, which neither an actor nor a server offers.
A response without any answer is wrong; a judgement that fails is an error with a reason, never a `wrong`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from prm_ray.errors import UserError
from prm_ray.finalanswers import as_number, choice_answer, choice_letter, exact_answer, final_answer, is_prose

if TYPE_CHECKING:
    from prm_ray.settings import LabelSection

_START_SECONDS = 300.0
"""For starting Python and importing the judge, on a loaded machine too."""
_MEMORY_BYTES = 4 * 1024**3


class Judgement(NamedTuple):
    """`answer`: what the response says, in a form that equal answers share; `correct`: null means see `error`."""

    answer: str | None
    correct: bool | None
    error: str | None = None


class Judge:
    """Judges one response at a time in its own process; may be called from any thread. Close it, or use `with`."""

    def __init__(self, section: LabelSection):
        self._name, self._pattern, self._seconds = section.judge, section.answer_pattern, section.timeout_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._start()  # a judge that does not load is the user's to know now, not at the first row

    def __call__(self, text: str, gold: str) -> Judgement:
        """Never raises for a response, however odd; `error` then starts with `timeout:`, `crash:` or `judge_error:`."""
        with self._lock:
            if self._process is None:
                self._start()
            assert self._process is not None
            try:
                self._pipe.send((text, gold))
                if self._pipe.poll(self._seconds):
                    return Judgement(*self._pipe.recv())
                reason = f"timeout: no judgement within {self._seconds:g} s"
            except (EOFError, ConnectionError):
                reason = f"crash: the judge ended with exit code {self._process.wait()}"
            self._stop()
            return Judgement(None, None, reason)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._stop()

    def _start(self) -> None:
        ours, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "prm_ray.answers", str(theirs.fileno()), self._name, str(self._seconds)]
        command += [self._pattern] if self._pattern else []
        self._process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()
        self._pipe = ours
        try:
            problem = ours.recv() if ours.poll(_START_SECONDS) else f"did not start within {_START_SECONDS:g} s"
        except EOFError:
            problem = f"ended with exit code {self._process.wait()} while starting"
        if problem:
            self._stop()
            raise UserError(f"label.judge {self._name!r}: {problem}")

    def _stop(self) -> None:
        process, self._process = getattr(self, "_process", None), None
        if process is not None:
            process.kill()
            process.wait()
            self._pipe.close()


def judge_response(text: str, gold: str, section: LabelSection) -> Judgement:
    """Judge a single response; starts and stops a process for it, so use `Judge` for many."""
    with Judge(section) as judge:
        return judge(text, gold)


def _judge_math(text: str, gold: str, pattern: str | None) -> Judgement:
    """Equality of mathematical expressions by Math-Verify, whose own signal-based time limits are off."""
    from math_verify import parse, verify

    wanted = _parse_gold(gold)
    if not wanted:
        return Judgement(None, None, f"unreadable_gold: {gold[:80]!r} is not a mathematical expression")
    stated = final_answer(text, pattern)
    if stated is None and pattern is not None:
        return Judgement(None, False)
    found = _parse_expression(stated) if stated is not None else parse(text, parsing_timeout=None)  # pyright: ignore
    if not found:
        return Judgement(stated, False)
    return Judgement(_as_text(found[0]), bool(verify(wanted, found, timeout_seconds=None)))


@functools.lru_cache(maxsize=64)
def _parse_gold(gold: str) -> list[Any]:
    """All samples of a problem share their gold answer."""
    return _parse_expression(gold)


def _parse_expression(text: str) -> list[Any]:
    """Plain LaTeX is only recognised inside a box; prose with a number in it only outside: inside, `12 dollars` is a
    product of letters."""
    from math_verify import parse

    boxed, found = f"\\boxed{{{text}}}", list[Any]()
    for way in (text, boxed) if is_prose(text) else (boxed, text):
        found = parse(way, parsing_timeout=None) or found  # pyright: ignore
        if any(not isinstance(each, str) for each in found):  # a text alone is what could not be read
            break
    return found


def _as_text(expression: Any) -> str:
    """One text for equal plain numbers: 52.0 and 52 vote for the same answer."""
    number = as_number(str(expression))
    return f"{number:f}" if number is not None else str(expression)


def _judge_exact(text: str, gold: str, pattern: str | None) -> Judgement:
    """The same number, or the same text but for case and outer space; a text without a stated answer is one itself."""
    answer, wanted = exact_answer(text, gold, pattern), as_number(gold)
    if answer is None and pattern is None and wanted is None:
        answer = text.strip() or None
    if answer is None:
        return Judgement(None, False)
    if wanted is not None:
        return Judgement(answer, as_number(answer) == wanted)
    return Judgement(answer, answer.casefold() == gold.strip().casefold())


def _judge_choice(text: str, gold: str, pattern: str | None) -> Judgement:
    """A letter of multiple choice."""
    wanted = choice_letter(gold)
    if wanted is None:
        return Judgement(None, None, f"unreadable_gold: {gold[:80]!r} is not a choice letter")
    letter = choice_answer(text, pattern)
    return Judgement(letter, letter == wanted)


_JUDGES: dict[str, Callable[[str, str, str | None], Judgement]] = {
    "math": _judge_math,
    "exact": _judge_exact,
    "choice": _judge_choice,
}


def _load(name: str) -> Callable[[str, str, str | None], Judgement]:
    """The judge of that name, warmed up. Raises whatever importing it raises."""
    if name not in _JUDGES:
        module, function = name.split(":")
        return functools.partial(_judge_by_function, getattr(importlib.import_module(module), function))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    # The first LaTeX expression builds the parser's tables, which takes seconds: before the first deadline runs.
    _JUDGES[name](r"The answer is \boxed{(\frac{1}{2}, 3^2)}.", "(0.5, 9)", None)
    return _JUDGES[name]


def _judge_by_function(
    function: Callable[[str, str], bool | None], text: str, gold: str, pattern: str | None
) -> Judgement:
    verdict = function(text, gold)
    if verdict is None:
        return Judgement(final_answer(text, pattern), None, "undecided: the judge returned None")
    return Judgement(final_answer(text, pattern), bool(verdict))


def _serve(pipe: Connection, name: str, seconds: float, pattern: str | None) -> None:
    """Body of the child process: one (text, gold) in, one judgement out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    try:
        judge = _load(name)
    except (ImportError, AttributeError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    while True:
        try:
            text, gold = pipe.recv()
        except EOFError:
            return
        # The parent kills at the deadline; should the parent be gone by then, the alarm ends this process.
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 5)
        try:
            judgement = judge(text, gold, pattern)
        except Exception as error:  # whatever a parser or a user's function raises is this row's reason, not our end
            judgement = Judgement(None, None, f"judge_error: {type(error).__name__}: {error}"[:300])
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(tuple(judgement))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2], float(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
