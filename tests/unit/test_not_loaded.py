"""A model that does not load for a reason that may pass is no bad input: the same command is worth another try."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import requests
import transformers

from prm_ray import models
from prm_ray.damage import not_loaded
from prm_ray.errors import StorageError, UserError
from prm_ray.rewardmodels import load_with_value_head

LOAD = """
import sys
from huggingface_hub.utils import _http
_http.time.sleep = lambda seconds: None  # between the tries of the hub's client
from prm_ray import models
from prm_ray.errors import StorageError, UserError
try:
    models.load_tokenizer("owner/name")
except (StorageError, UserError) as error:
    print(type(error).__name__, error)
"""


@contextmanager
def hub(status: int) -> Iterator[str]:
    """One that answers everything with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def loaded_from(endpoint: str, home: Path, offline: bool = False) -> str:
    """What loading a tokenizer of a hub that is not cached says, in a process that has that hub's address."""
    around = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run([sys.executable, "-c", LOAD], env=os.environ | around, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.stdout


@pytest.mark.parametrize(("status", "kind"), [(429, "StorageError"), (503, "StorageError"), (403, "UserError")])
def test_a_hub_that_refuses_at_the_moment_is_no_bad_input(tmp_path: Path, status: int, kind: str):
    with hub(status) as endpoint:
        said = loaded_from(endpoint, tmp_path)
    assert said.startswith(f"{kind} model 'owner/name' has no tokenizer that loads: ")
    assert ("run the same command again" in said and str(status) in said) == (kind == "StorageError")


def test_a_hub_that_is_away_is_none_but_the_users_own_offline_mode_is(tmp_path: Path):
    nobody = "http://127.0.0.1:9"
    assert loaded_from(nobody, tmp_path).startswith("StorageError model 'owner/name' has no tokenizer that loads: ")
    assert loaded_from(nobody, tmp_path, offline=True).startswith("UserError ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_a_disk_that_is_full_or_away_is_no_bad_input(tiny_model: str, monkeypatch: pytest.MonkeyPatch, number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    kind = UserError if number == errno.EACCES else StorageError
    loads = {"AutoTokenizer": models.load_tokenizer, "AutoConfig": models.load_config}
    loads |= {"AutoModelForCausalLM": models.load_model, "AutoModelForSequenceClassification": load_with_value_head}
    for name, load in loads.items():
        with monkeypatch.context() as patch, pytest.raises(kind, match=os.strerror(number)):
            patch.setattr(getattr(transformers, name), "from_pretrained", fail)
            load(tiny_model)


def raised_from(cause: Exception) -> OSError:
    error = OSError("it does not load")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("cause", [httpx.ReadTimeout("late"), requests.ReadTimeout("late"), TimeoutError("late")])
def test_whichever_client_the_hub_has_a_timeout_passes_and_is_told(cause: Exception):
    told = not_loaded("model 'a/b' does not load", raised_from(cause))
    assert isinstance(told, StorageError) and "it does not load (late); run the same command again" in str(told)
    assert type(not_loaded("model", raised_from(ValueError("odd")))) is UserError
    assert type(not_loaded("model", raised_from(httpx.UnsupportedProtocol("ftp")))) is UserError
