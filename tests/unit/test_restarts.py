"""What a training says when its workers fail."""

import pytest

from prm_ray.stages.restarts import SaysRestarts

TRACEBACK = "Traceback (most recent call last):\n  File x\nRuntimeError: out of memory\n"


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ({3: RuntimeError(TRACEBACK)}, "train: worker 3 failed: RuntimeError: out of memory"),
        ({1: ValueError(""), 0: RuntimeError(TRACEBACK)}, "train: 2 workers failed: RuntimeError: out of memory"),
        ({0: ValueError("")}, "train: worker 0 failed: ValueError"),
    ],
)
def test_workers_that_fail_are_one_line(errors: dict[int, Exception], line: str, capsys: pytest.CaptureFixture[str]):
    SaysRestarts("train").after_exception(None, errors)
    assert capsys.readouterr().err == line + "\n"
