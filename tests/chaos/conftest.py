"""Whatever a test of kills leaves behind is ended when it is over."""

import uuid
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.processes import marked


@pytest.fixture
def mark() -> Iterator[str]:
    """A value of the environment variable by which every process of the test can be told from all others."""
    mark = uuid.uuid4().hex
    yield mark
    for process in marked(mark):
        with suppress(psutil.NoSuchProcess):
            process.kill()
