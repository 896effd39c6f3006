"""Why a model does not load: which of its files is damaged, or whether the same again may succeed."""

from __future__ import annotations

import errno
from pathlib import Path

from safetensors import SafetensorError, safe_open

from prm_ray.errors import StorageError, UserError, with_causes
from prm_ray.storage import error_number

_PASSING_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Of the system: a disk that is full or away, on this machine perhaps and not on the next."""
_PASSING_TYPES = {"ConnectionError", "TimeoutError", "gaierror", "TransportError", "Timeout", "ChunkedEncodingError"}
"""Of Python, httpx and requests, by name: which of these the hub's client uses is a matter of its version."""
_LASTING_TYPES = {"OfflineModeIsEnabled", "UnsupportedProtocol"}
"""Connection errors by type, of settings that the next try would find again."""
_ASK_AGAIN = {408, 425, 429}


def not_loaded(what: str, error: BaseException, name: str | Path | None = None) -> UserError | StorageError:
    """What to raise where something does not load: a `StorageError` if the same may succeed later, as after a hub or a
    disk that was away; else it is bad input. `name` is that of a model whose files may be damaged."""
    if (passing := _passing_cause(error)) is not None:
        whence = "" if passing is error else f" ({reason(passing)})"
        return StorageError(f"{what}: {reason(error)}{whence}; run the same command again, what is finished is kept")
    return UserError(f"{what}: {reason(error) if name is None else why_not(name, error)}")


def _passing_cause(error: BaseException) -> BaseException | None:
    """The first error in the chain that says whether it lasts, if it does not."""
    for each in with_causes(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        types = {kind.__name__ for kind in type(each).__mro__}
        if status is not None:
            return each if status >= 500 or status in _ASK_AGAIN else None
        if types & _LASTING_TYPES:
            return None
        if types & _PASSING_TYPES or error_number(each) in _PASSING_NUMBERS:
            return each
    return None


def why_not(name: str | Path, error: BaseException) -> str:
    """Why a model does not load, in one line: the weights file that is cut off if there is one, else what `error` says.

    Single bytes that are wrong are not noticed: safetensors has no checksums.
    """
    for path in sorted(Path(name).glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                continue
        except (SafetensorError, OSError) as damage:
            return (
                f"{str(path)!r} is damaged ({damage}); copy it there again, or, of a stage of a run, make it again "
                "with --fresh and the name of the stage"
            )
    return reason(error)


def reason(error: BaseException) -> str:
    """The first line of what a library says; of code that comes with a model, the setting that has it run."""
    if "trust_remote_code" in str(error):
        return (
            "it comes with code of its own, which runs only with model.trust_remote_code = true (that of a published "
            "reward model never does)"
        )
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
