"""Reaches a cluster's Jobs API, and says in one line why it cannot."""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prm_ray.errors import ClusterError, UserError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where Ray's own command line looks, in this order."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ANSWERS_WITHIN_SECONDS = 15.0
"""A head that is busy may take some."""
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


def connect(address: str | None) -> Any:
    """A `JobSubmissionClient` of the cluster at this address, else at the one that the environment names, else here.

    Raises `UserError` within seconds if nobody listens there, or if the cluster asks for a token that is not given.
    """
    source, address = _given(address)
    url = find(address)
    try:
        from ray.job_submission import JobSubmissionClient
    except ModuleNotFoundError:
        raise UserError("jobs on a cluster need Ray here too: pip install 'prm-ray[ray]'") from None
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ[ADDRESS_VARIABLES[0]] = url  # Ray's client lets this variable win over the address it is given
    if url.startswith(("http://", "https://")):
        with asking(url):
            return JobSubmissionClient(url)
    try:
        with asking(whom := f"the cluster that Ray finds at {source} {address!r}"):
            return JobSubmissionClient(url)
    except ClusterError as error:  # what Ray advises then is not about jobs
        reason = str(error).removeprefix(f"{whom} ").partition(" Please ")[0].rstrip(".")
        raise UserError(f"{source} {address!r} leads to no dashboard ({reason}): {_HOW}") from None


def _given(address: str | None) -> tuple[str, str]:
    """Where the address is from, and the address."""
    if address is not None and not address.strip():  # as of a variable that is not set: not the default's jobs
        raise UserError(f"--address {address!r} is empty: {_HOW}")
    named = ((name, os.environ.get(name)) for name in ADDRESS_VARIABLES)
    given = next(((name, value) for name, value in (("--address", address), *named) if value), None)
    return given or ("the default", DEFAULT_ADDRESS)


@contextmanager
def asking(whom: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line: a `UserError` for a token, else a `ClusterError`."""
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except (UserError, BrokenPipeError):  # ours, and a reader of our output who has seen enough
        raise
    except AuthenticationError as error:
        wrong = "does not accept the token" if "invalid" in str(error).lower() else "asks for a token"
        how = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
        raise UserError(f"{whom} {wrong}: {how} to the cluster's own") from None
    except (OSError, ClientError, RayError) as error:  # what `requests` raises is an OSError too
        raise ClusterError(f"{whom} does not answer: {error}") from None
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"{whom} refused: {_last_line(str(error))}") from None


def find(address: str) -> str:
    """The address, with http:// in front if it had nothing there. Raises `UserError` if nobody listens.

    HOST:PORT may also be the cluster's own address, as RAY_ADDRESS often is; then Ray asks that for its dashboard.
    Addresses of other kinds (`auto`, ray://) are Ray's to find too.
    """
    if address == "auto" or ("://" in address and not address.startswith(("http://", "https://"))):
        return address
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=_ANSWERS_WITHIN_SECONDS) as reply:
            if "ray_version" in json.loads(reply.read()):
                return url
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # the client will say what is wrong with the token
            return url
    except http.client.HTTPException:  # somebody speaks, but not HTTP
        if "://" not in address:
            return address
    except json.JSONDecodeError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(f"no cluster answers at {url} ({_why(error)}): {_HOW}") from None
    raise UserError(f"what answers at {url} is no Ray dashboard: {_HOW}")


_HOW = (
    f"--address (or {ADDRESS_VARIABLES[0]}) must be a head node's dashboard, such as http://HEAD:8265, "
    "which `ray start --head` prints"
)


def _why(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError | socket.timeout):
        return f"nothing within {_ANSWERS_WITHIN_SECONDS:g} s"
    return getattr(reason, "strerror", None) or str(reason)


def _last_line(text: str) -> str:
    """Of a server's traceback the line that says what was wrong."""
    return ([line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()] or [""])[-1]
