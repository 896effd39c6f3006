"""The playground: a page at `/` that scores a problem's candidates and shows them ranked. Files only, no model.

The page asks the same endpoints as every client; nothing on it is loaded from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).with_name("playground")
_FILES = ("style.css", "main.js", "api.js", "form.js", "ranking.js", "results.js", "icon.svg")
PATHS = frozenset({"/", *(f"/playground/{name}" for name in _FILES)})
"""What needs no key: these files say nothing about the models."""

HEADERS = {
    # Trusted types forbid what could turn text into markup, such as innerHTML, wherever the browser knows them.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for each time, and answered 304 while the ETag is the same
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_playground(api: FastAPI) -> None:
    files = _Files(directory=FOLDER)

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    api.add_route("/", page, methods=["GET"], include_in_schema=False)
    api.mount("/playground", files)
