"""The processes of a vLLM engine end when whoever started it has ended, in whatever way.

vLLM stops them itself when it is stopped; after SIGKILL they would wait for requests for ever, with the GPU's memory.
It calls `end_with_owner` as a plugin in each of them.
"""

from __future__ import annotations

import os
import signal
import threading
import time

OWNER = "PRM_RAY_ENGINE_OWNER"
"""Environment variable: process id of the one that holds an engine of ours. Without it nothing is done: vLLM calls
plugins in engines that are not ours too."""
_SECONDS = 1.0


def end_with_owner() -> None:
    """In a process below the owner: watch the parent from now on. In the owner itself, nothing."""
    owner = os.environ.get(OWNER)
    if owner and owner != str(os.getpid()) and not _is_watching():
        threading.Thread(target=_watch, args=(os.getppid(),), name=OWNER, daemon=True).start()


def _is_watching() -> bool:
    """vLLM calls a plugin several times in a process."""
    return any(thread.name == OWNER for thread in threading.enumerate())


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)  # nobody is left who could be told anything
