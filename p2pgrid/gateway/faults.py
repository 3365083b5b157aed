"""Errors in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

import math
from collections.abc import Mapping

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from p2pgrid.errors import BadInput, BadSchema, NoRoute, Overloaded, P2pgridError, PeerError

log = structlog.get_logger()

RETRY_S_MIN = 1


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong, for people, and for programs that look at `code` and `param`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorDocument(msgspec.Struct, frozen=True):
    """The body of every answer that is none."""

    error: ErrorBody


class ApiError(Exception):
    """A request that gets `status` and an error document. The other arguments are the fields of `ErrorBody`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.document = ErrorDocument(ErrorBody(message, type, param, code))
        self.headers = dict(headers or {})


def unsupported(param: str, why: str) -> ApiError:
    """A field or value that this gateway knows and does not carry out."""
    return ApiError(400, f"{param} is not supported: {why}", param=param, code="unsupported_parameter")


def too_busy(message: str, retry_after_s: float, code: str = "overloaded") -> ApiError:
    """Come again: 429 with Retry-After in whole seconds."""
    after = {"Retry-After": str(max(RETRY_S_MIN, math.ceil(retry_after_s)))}
    return ApiError(429, message, type="rate_limit_error", code=code, headers=after)


def as_api_error(error: P2pgridError) -> ApiError:
    """What an HTTP client should make of an error of ours: change the request, come again, or tell the operator."""
    message = str(error)
    match error:
        case BadSchema():
            return ApiError(400, message, param="response_format", code="invalid_value")
        case BadInput():
            code = "context_length_exceeded" if "the context holds" in message else None
            return ApiError(400, message, code=code)
        case Overloaded():
            return too_busy(f"the swarm is busy: {message}", error.retry_after_s)
        case NoRoute():
            return ApiError(503, message, type="server_error", code="no_route", headers={"Retry-After": "5"})
        case PeerError():
            return ApiError(503, message, type="server_error", code="peer_failed", headers={"Retry-After": "1"})
        case _:
            return ApiError(500, message, type="server_error", code="local_fault")


def error_response(error: ApiError) -> Response:
    body = msgspec.json.encode(error.document)
    return Response(body, error.status, error.headers, media_type="application/json")


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def on_own_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, P2pgridError)
    return error_response(as_api_error(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router says: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = "unknown_url" if error.status_code == 404 else None
    return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))


async def on_defect(request: Request, error: Exception) -> Response:
    """A bug of ours. The log gets its kind and place and nothing that was in it: that may be somebody's prompt."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = None if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
    log.error("a defect of p2pgrid", kind=type(error).__name__, where=where, path=request.url.path)
    return error_response(ApiError(500, "a defect of p2pgrid; its log says where", type="server_error"))
