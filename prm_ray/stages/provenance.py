"""Where a result comes from: the revision of our code and the versions of what it ran on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_RECORDED = ("torch", "ray", "vllm", "transformers", "peft")


def package_version() -> str:
    """Version of the installed package; `unknown` when it runs from a folder that was never installed."""
    return _version_of("prm-ray") or "unknown"


def code_revision() -> str:
    """Git commit of the checkout the package lies in (`-dirty` with uncommitted changes), else the package version."""
    package = Path(__file__).resolve().parents[1]
    # Tracked or not is asked first: site-packages may lie inside the checkout of something else.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        revision = _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        if revision:
            return revision
    return package_version()


def versions() -> dict[str, str | None]:
    """Python and the large libraries; null = not installed on the driver's machine."""
    return {"python": platform.python_version(), **{name: _version_of(name) for name in _RECORDED}}


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
