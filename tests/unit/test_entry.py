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


@pytest.mark.parametrize(("num_read", "code", "said"), [(1, 141, b""), (100_000, 0, b"")])
def test_a_reader_that_has_seen_enough_is_no_failure(num_read: int, code: int, said: bytes):
    """As `| head` is, once it has its lines."""
    program = (
        "from prm_ray.entry import failing_in_one_line\nwith failing_in_one_line():\n    print('line\\n' * 100_000)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None and command.stderr is not None
        for _ in range(num_read):
            command.stdout.readline()
        if num_read == 1:
            command.stdout.close()
        else:
            command.stdout.read()
        assert command.stderr.read() == said
    assert command.returncode == code


def test_a_connection_that_breaks_is_no_reader_that_left():
    with pytest.raises(BrokenPipeError), failing_in_one_line():
        raise BrokenPipeError


def test_an_unknown_failure_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), failing_in_one_line():
        raise ZeroDivisionError
