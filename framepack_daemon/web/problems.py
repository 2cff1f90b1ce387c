"""How the gateway says that something cannot be done: one form for every refusal, and the HTTP status of each error.

`detail` says what is wrong and names the field, `hint` what to do, `code` is stable. Errors of the package become such
an answer here and nowhere else. Knows no route.
"""

from __future__ import annotations

from typing import Any, ClassVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from framepack_daemon.errors import (
    ClipError,
    ContinuationError,
    DropError,
    FolderAwayError,
    FramepackError,
    ImageError,
    LoraError,
    RequestError,
    StateError,
    UnknownJobError,
)
from framepack_daemon.printable import printable

RETRY_SECONDS = 10  # after which a queue that could not be written is worth another try

_log = structlog.get_logger(__name__)


class Problem(BaseModel):
    """What a client is told when something cannot be done."""

    detail: str = Field(description="What is wrong; begins with the field, where one is.")
    code: str = Field(description="Stable and machine-readable.")
    hint: str = Field("", description="What to do about it.")


class GatewayError(FramepackError):
    """Something that the gateway itself refuses."""

    status: ClassVar[int] = 422
    retry_seconds: ClassVar[int | None] = None


class TooLargeError(GatewayError):
    """An upload has more bytes than may be."""

    code = "too_large"
    status = 413


class MediaTypeError(GatewayError):
    """The body is no form."""

    code = "media_type"
    status = 415


class UploadError(GatewayError):
    """The body is a form, but a damaged one."""

    code = "bad_upload"
    status = 422


class SlowUploadError(GatewayError):
    """Nothing more came of an upload."""

    code = "slow_upload"
    status = 408


class QueueFullError(GatewayError):
    """Too many jobs wait already."""

    code = "queue_full"
    status = 429
    retryable = True
    retry_seconds = 60


class NothingThereError(GatewayError):
    """The job, or the file, is not there (yet)."""

    code = "not_there"
    status = 404


STATUS: dict[type[FramepackError], int] = {
    UnknownJobError: 404,
    StateError: 409,
    FolderAwayError: 503,
    RequestError: 422,
    ImageError: 422,
    ClipError: 422,
    DropError: 422,
    LoraError: 422,
    ContinuationError: 422,
}


def answer(status: int, detail: str, code: str, hint: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal."""
    problem = Problem(detail=printable(detail), code=code, hint=printable(hint))
    return JSONResponse(problem.model_dump(), status, headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that can refuse so."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}


_DESCRIPTIONS = {
    400: "The body cannot be parsed.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page or under a name that is not allowed.",
    404: "There is no such thing, or not yet.",
    408: "The upload stood still for too long.",
    409: "The job is in a state that does not allow it.",
    413: "The upload is too large.",
    415: "The body is no multipart form.",
    416: "The range lies beyond the end.",
    422: "Something in the request is wrong; `detail` begins with the field.",
    429: "Too many jobs wait; `Retry-After` says when to come back.",
    503: "The queue cannot take jobs at the moment; `Retry-After` says when to come back.",
}


def install(app: FastAPI) -> None:
    """Have the app answer errors in this form."""
    app.add_exception_handler(FramepackError, _framepack)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(ClientDisconnect, _gone)


def _framepack(_: Request, error: Exception) -> Response:
    assert isinstance(error, FramepackError)
    if isinstance(error, GatewayError):
        status, seconds = error.status, error.retry_seconds
    else:
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 503)
        seconds = RETRY_SECONDS if status == 503 else None  # noqa: PLR2004 - HTTP's number
    return answer(status, error.message, error.code, error.hint, _retry(seconds))


def _system(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    _log.error("folder_failed", path=request.url.path, reason=str(error))
    hint = "see the gateway's log; it goes on by itself when the folder is writable again"
    return answer(503, f"the queue cannot be used: {error.strerror}", "folder", hint, _retry(RETRY_SECONDS))


def _http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    detail = str(getattr(error, "detail", "") or "failed")
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:  # noqa: PLR2004 - HTTP's number
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return answer(status, f"{request.method} {request.url.path}: {detail}", "http", "", headers)


def _methods(request: Request) -> set[str]:
    """What may be done with the path that was asked for, by all its routes together."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in getattr(route, "methods", None) or ()}


def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}" for item in error.errors()]
    return answer(422, "; ".join(problems)[:2000], "bad_request")


def _gone(_: Request, __: Exception) -> Response:
    """For nobody: who asked has hung up."""
    return Response(status_code=400)


def _retry(seconds: int | None) -> dict[str, str] | None:
    return None if seconds is None else {"Retry-After": str(seconds)}
