"""The HTTP application: every dialect over one backend, and how errors look. No Ray: it can be tried in one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from prm_ray.scoring.asks import SERVER_FAILED, Backend, Refusal, RefusedError
from prm_ray.serve.asking import Asking, Gateway, RequestLimits
from prm_ray.serve.bodies import ERRORS, error_body, validation_message
from prm_ray.serve.dialects import chat, openrlhf, own, rerank, trl, vllm
from prm_ray.serve.page import add_playground
from prm_ray.serve.requestrecord import current_record

DIALECTS = (own.router, rerank.router, vllm.router, openrlhf.router, trl.router, chat.router)


def make_api(backend: Backend, limits: RequestLimits, gateway: Gateway | None = None) -> FastAPI:
    api = FastAPI(
        title="prm_ray",
        description="Rewards of process reward models, for each step and each response.",
        docs_url="/docs",
        redoc_url=None,
    )
    api.state.asking = Asking(backend, limits, gateway)
    for router in DIALECTS:
        api.include_router(router, responses=ERRORS)
    _add_health(api)
    add_playground(api)
    api.add_exception_handler(RequestValidationError, _answer_invalid)
    api.add_exception_handler(RefusedError, _answer_refused)
    api.add_exception_handler(HTTPException, _answer_http)
    api.add_exception_handler(Exception, _answer_failure)
    return api


def _add_health(api: FastAPI) -> None:
    @api.get("/healthz", tags=["health"])
    @api.get("/health", tags=["health"])  # where clients of vLLM, TEI and TRL look
    async def healthz() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "ok"}

    @api.get("/readyz", tags=["health"])
    async def readyz() -> dict[str, Any]:
        """200 once every model has a replica that answers, else 503."""
        asking: Asking = api.state.asking
        ready = await asking.num_ready()
        missing = [facts.name for facts in asking.models() if not ready.get(facts.name)]
        if missing:
            raise RefusedError(Refusal(503, "unavailable", f"no replica runs of: {', '.join(missing)}", 2))
        return {"status": "ok", "replicas": ready}


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _error(422, "invalid_request", validation_message(list(error.errors())))


async def _answer_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    refusal = error.refusal
    headers = None if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return _error(refusal.status, refusal.kind, refusal.message, headers)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """An unknown path, a wrong method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    kind = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}.get(
        error.status_code, "invalid_request"
    )
    return _error(error.status_code, kind, str(error.detail), error.headers)


async def _answer_failure(request: Request, error: Exception) -> JSONResponse:
    return _error(SERVER_FAILED.status, SERVER_FAILED.kind, SERVER_FAILED.message)


def _error(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    current_record().error = kind
    return JSONResponse(error_body(kind, message), status_code=status, headers=headers)
