"""The playground's files as the server sends them: to everybody, with headers that forbid what they do not need."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from prm_ray.serve.guard import Guard, GuardLimits
from prm_ray.serve.keys import KeyRing, new_key
from prm_ray.serve.page import FOLDER, PATHS
from tests.serving import asked, tiny_api


@pytest.fixture
def guarded(tmp_path: Path) -> Guard:
    (tmp_path / "keys").write_text(new_key("someone")[1] + "\n")
    return Guard(tiny_api({}), GuardLimits(10_000, 1.0), KeyRing(tmp_path / "keys"))


def get(app: Guard, path: str, **headers: str) -> httpx.Response:
    (reply,) = asyncio.run(asked(app, lambda client: client.get(path, headers=headers)))
    return reply


def test_every_file_is_there_without_a_key_and_tightly_guarded(guarded: Guard) -> None:
    assert {f"/playground/{each.name}" for each in FOLDER.iterdir()} - {"/playground/index.html"} == PATHS - {"/"}
    for path in PATHS:
        reply = get(guarded, path)
        assert reply.status_code == 200, path
        policy = reply.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert get(guarded, path, **{"If-None-Match": reply.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["/playground/../guard.py", "/playground/%2e%2e/guard.py", "/playground/nothing.js"])
def test_nothing_else_is_given_away(guarded: Guard, path: str) -> None:
    assert get(guarded, path).status_code == 401
    (reply,) = asyncio.run(asked(tiny_api({}), lambda client: client.get(path)))
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found")


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_inline() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|innerHTML|insertAdjacentHTML|\beval\b", text), file.name
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
