"""Which file of a model folder is damaged, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open


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
