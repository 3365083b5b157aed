"""Reading a request: never more of it than the limits allow, never for longer, and into a struct or an ApiError."""

import re
from typing import Any, TypeVar

import msgspec
import trio
from starlette.requests import ClientDisconnect, Request

from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.limits import GatewayLimits

T = TypeVar("T")

DISCARD_FACTOR = 4
"""A body that is too long is read on for so many times the limit, so that its sender gets to hear the answer."""

_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<field>[^`]*)`")


async def read_json(request: Request, kind: type[T], limits: GatewayLimits) -> T:
    """The body as a `kind`. Raises ApiError 400, 408, 413 or 415."""
    # A browser asks before it sends a stranger's JSON here, and gets no for an answer; anything else it just sends.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "the body must be JSON: send the header Content-Type: application/json")
    body = await _read(request, limits)
    try:
        return _decode(body, kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None


def _decode(body: bytes, kind: type[T]) -> T:
    """Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    return msgspec.convert(_whole_numbers(msgspec.json.decode(body)), kind)


def _whole_numbers(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is the 5 that a field wants."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole_numbers(each) for each in value]
        case dict():
            return {key: _whole_numbers(each) for key, each in value.items()}
        case _:
            return value


def invalid(error: msgspec.ValidationError) -> ApiError:
    """The error with the place of what is wrong as its `param`."""
    text = str(error)
    at = _AT.search(text)
    path = at["path"] if at else ""
    field = _FIELD.search(text)
    if field:
        path = f"{path}.{field['field']}".lstrip(".")
    unknown = "unknown field" in text
    message = _AT.sub(f" (at {at['path']})" if at and at["path"] else "", text)
    code = "unknown_parameter" if unknown else "invalid_value"
    return ApiError(400, message, param=path or None, code=code)


async def _read(request: Request, limits: GatewayLimits) -> bytes:
    most = limits.body_bytes_max
    body = bytearray()
    nbytes = 0
    with trio.move_on_after(limits.body_s_max):
        try:
            async for piece in request.stream():
                nbytes += len(piece)
                if nbytes <= most:
                    body += piece
                elif nbytes > DISCARD_FACTOR * most:
                    break
        except ClientDisconnect:
            raise ApiError(400, "the client went away in mid-request") from None
        if nbytes > most:
            raise ApiError(413, f"the body has more than {most} bytes: send less", code="body_too_large")
        return bytes(body)
    raise ApiError(408, f"the body did not come within {limits.body_s_max:g} s", code="body_timeout")
