"""Bodies read as the JSON standard has it: no NaN, no lone surrogates, no depth that would end in a recursion error."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not valid JSON: {error}") from None


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            if self.methods & _WITH_BODY:
                _check_content_type(request)
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


def _check_content_type(request: Request) -> None:
    """Raises for a body that would not be read as JSON: the framework would call it a wrong value."""
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"not {given[:100]!r}" if given else "and the request has none"
        raise HTTPException(415, f"Content-Type must be application/json, {said}")


def strict_router(tag: str) -> APIRouter:
    return APIRouter(tags=[tag], route_class=_StrictRoute)
