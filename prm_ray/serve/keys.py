"""API keys: stored as SHA-256, one line each in a file that may be changed while the server runs.

    # name  sha256 of the key  requests a minute (optional)
    trainer 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 600

A key is 32 random bytes, so its plain hash is enough: there is nothing to guess. No key is ever stored or logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from prm_ray.errors import UserError
from prm_ray.runlog import log

_LINE = re.compile(r"(?P<name>[\w.-]{1,100})\s+(?P<digest>[0-9a-f]{64})(?:\s+(?P<limit>[1-9]\d{0,8}))?")
_LOOKED_AT_EVERY = 1.0
"""Seconds between looks at the file's time stamp."""
_MAY_BE_WRITTEN_FOR = 5.0
"""Seconds for which a file that is wrong may be one that somebody is writing."""


@dataclass(frozen=True)
class ApiKey:
    name: str
    digest: str
    """SHA-256 of the key, 64 hex digits."""
    requests_per_minute: int | None = None


def new_key(name: str, requests_per_minute: int | None = None) -> tuple[str, str]:
    """(the key, which is shown once; the line of the file that lets it in).

    Raises `UserError` for a name or a rate that a line cannot hold.
    """
    key = f"prm-{secrets.token_urlsafe(32)}"
    line = f"{name} {digest_of(key)}" + ("" if requests_per_minute is None else f" {requests_per_minute}")
    if not _LINE.fullmatch(line):
        raise UserError(
            f"the key's name {name!r} must be 1 to 100 letters, digits, dots, dashes or underscores"
            + ("" if requests_per_minute is None else f", and {requests_per_minute} a positive number")
        )
    return key, line


def add_line(path: Path, line: str) -> None:
    """Append a line; a file that is made for it can be read by its owner alone. Raises `UserError` if it cannot be."""
    try:
        with open(path, "a+", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.seek(0)
            ends = file.read()[-1:] in ("", "\n")
            file.write(("" if ends else "\n") + line + "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file {str(path)!r} cannot be written: {error}") from None


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> list[ApiKey]:
    """Raises `UserError` for a file that is not there, holds no key, or has a line that is none."""
    keys, wrong = _read(path)
    if wrong is not None:
        raise UserError(wrong)
    return keys


def _read(path: Path) -> tuple[list[ApiKey], str | None]:
    """The keys of the lines that are right, and what else is wrong with the file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], f"serve.api_keys_file {str(path)!r} cannot be read: {error}"
    keys, wrong = [], None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            keys.append(ApiKey(match["name"], match["digest"], int(match["limit"]) if match["limit"] else None))
            continue
        wrong = wrong or (
            f"line {number} of serve.api_keys_file {str(path)!r} must be: a name, the key's SHA-256 "
            "as 64 hex digits, and perhaps the requests a minute"
        )
    if not keys:
        wrong = wrong or f"serve.api_keys_file {str(path)!r} holds no key; make one with prm-ray key NAME"
    return keys, wrong


class KeyRing:
    """The keys of a file, read again when it changes.

    Of a file that went wrong the keys before hold for a few seconds more, for somebody may be writing it. After that
    it is taken at its word: a key that it does not hold lets nobody in, and without any, or without the file, nobody
    is let in. A typing error so costs the keys of its own lines, and revoking the last key revokes it.
    """

    def __init__(self, path: Path):
        self._path = path
        self._stamp = self._stamp_now()
        self._keys = read_keys(path)
        self._looked_at = self._was_right_at = time.monotonic()
        self._warned_of: tuple[object, str] | None = None

    def find(self, key: str) -> ApiKey | None:
        """Every digest is compared, each in constant time: how long it takes says nothing about any of them."""
        self._look()
        digest = digest_of(key)
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOKED_AT_EVERY:
            return
        self._looked_at = now
        stamp = self._stamp_now()
        if stamp is not None and stamp == self._stamp:
            self._was_right_at = now
            return
        keys, wrong = _read(self._path)
        if wrong is None:
            self._keys, self._stamp, self._was_right_at, self._warned_of = keys, stamp, now, None
            return
        self._stamp = None  # of a disk that cannot be reached it would be the same when it can
        if self._warned_of != (stamp, wrong):
            self._warned_of = stamp, wrong
            who = f"only its other keys ({len(keys)}) are" if keys else "nobody is"
            log.warning("%s; unless it is mended within %g s, %s let in", wrong, _MAY_BE_WRITTEN_FOR, who)
        # nobody asked for a while, nobody looked: it is wrong since then, for all that is known
        if now - self._was_right_at >= _MAY_BE_WRITTEN_FOR:
            self._keys = keys

    def _stamp_now(self) -> tuple[int, ...] | None:
        """Changes with the file; None where there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class RateLimit:
    """So many requests a minute for each name, spread evenly, with a burst of a sixth of a minute's at once."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def seconds_to_wait(self, name: str, per_minute: int, now: float) -> float:
        """0 = go ahead, and that request is counted."""
        burst, rate = max(1.0, per_minute / 6), per_minute / 60
        room, last = self._buckets.get(name, (burst, now))
        room = min(burst, room + (now - last) * rate)
        if room < 1:
            self._buckets[name] = (room, now)
            return (1 - room) / rate
        self._buckets[name] = (room - 1, now)
        return 0.0
