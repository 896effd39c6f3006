"""How a command ends: exit codes and the one line that says why."""

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


def test_an_unknown_failure_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), failing_in_one_line():
        raise ZeroDivisionError
