"""How a command ends: exit codes and the one line that says why."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from prm_ray.entry import failing_in_one_line
from prm_ray.errors import NonFiniteLossError, UserError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("train.lr: too\nlarge"), 2, "prm-ray: error: train.lr: too large\n"),
        (NonFiniteLossError("loss nan at step 3"), 1, "prm-ray: error: loss nan at step 3\n"),
    ],
)
def test_a_known_failure_is_one_line_with_its_exit_code(error, code, line, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info, failing_in_one_line():
        raise error
    assert exit_info.value.code == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("was_running", [False, True])
def test_the_line_comes_behind_what_ray_prints_to_its_end_and_another_ones_ray_goes_on(
    was_running: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    ray = SimpleNamespace(is_initialized=lambda: was_running, shutdown=lambda: print("last words", file=sys.stderr))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(SystemExit) as exit_info, failing_in_one_line():
        ray.is_initialized = lambda: True
        raise UserError("no")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == ("" if was_running else "last words\n") + "prm-ray: error: no\n"


def test_an_interrupted_command_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info, failing_in_one_line():
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert "the same command (without --fresh) goes on from there" in capsys.readouterr().err


WRITES = """
import sys
from prm_ray.entry import failing_in_one_line
with failing_in_one_line():
    print("begun", flush=True)
    sys.stdin.read()
    {}
"""


@pytest.mark.parametrize("last", ["print('x')", "print('x'); sys.exit(1)", "print('x' * 1_000_000)"])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_reader_that_has_seen_enough_is_no_failure(last: str, leaves: bool):
    """As `| head` is, once it has its lines."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WRITES.format(last)], **pipes) as command:
        assert command.stdin is not None and command.stdout is not None and command.stderr is not None
        assert command.stdout.readline() == b"begun\n"
        if leaves:
            command.stdout.close()
        command.stdin.close()
        if not leaves:
            assert command.stdout.read().startswith(b"x")
        assert command.stderr.read() == b""
    assert command.returncode == (141 if leaves else int("exit" in last))


def test_a_command_without_any_output_ends_well():
    words = [sys.executable, "-c", WRITES.format("pass")]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], stdin=subprocess.DEVNULL, capture_output=True)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_connection_that_breaks_is_no_reader_that_left():
    with pytest.raises(BrokenPipeError), failing_in_one_line():
        raise BrokenPipeError


def test_an_unknown_failure_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), failing_in_one_line():
        raise ZeroDivisionError
