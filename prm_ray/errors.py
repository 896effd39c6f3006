"""The kinds of failure a user can cause or must know about; plain subclasses, so they survive pickling by Ray."""

from __future__ import annotations

from collections.abc import Iterator


class UserError(ValueError):
    """Bad input. The message is one line: the thing, its value, what it must be. The CLI prints it and exits with 2."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; every rank stops before the optimizer moves the weights."""


class EngineError(RuntimeError):
    """An engine does not start, or not any more, for a reason that is not the user's. What is finished is kept."""


class ClusterError(RuntimeError):
    """A cluster does not answer, or refuses. Work that was begun there may go on."""


class StorageError(RuntimeError):
    """Something could not be written, for want of room or of a right to, or not be read or fetched now. What is
    finished is kept; the same command may succeed later."""


class TakenOverError(RuntimeError):
    """Another start of the same run works on a stage in place of this one, or has removed its folder."""


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then each that it was raised from or that was being handled meanwhile, and so on; each once."""
    left: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while left:
        each = left.pop()
        if each is not None and not any(each is other for other in seen):
            seen.append(each)
            left += [each.__context__, each.__cause__]
            yield each
