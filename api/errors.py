"""Errors as HTTP: one table from codes to statuses, one body.

{"error": {"message", "type", "code", "param"}}
"""

import math

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from relay import errors
from relay.errors import RelayError
from relay.requests import place

log = structlog.get_logger("relay.api")

STATUS: dict[type[RelayError], int] = {
    errors.Malformed: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.StreamLost: 404,
    errors.Conflict: 409,
    errors.Expired: 410,
    errors.TooLarge: 413,
    errors.InvalidValue: 422,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.ConnectionLost: 503,
    errors.Redirected: 503,
    errors.Draining: 503,
    errors.OutOfMemory: 503,
}
RETRY_AFTER_S = 1.0


def body_of(error: RelayError) -> dict[str, dict[str, str | None]]:
    """The JSON body of an error."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "code": error.code,
            "param": error.param,
        }
    }


def answer(error: RelayError) -> JSONResponse:
    """The HTTP response of an error; retryable ones say when."""
    status = STATUS.get(type(error), 500)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error), status_code=status, headers=headers)


async def on_relay_error(_request: Request, error: Exception) -> JSONResponse:
    """An error of ours."""
    assert isinstance(error, RelayError)  # noqa: S101 registered for this type only
    if type(error) not in STATUS:
        return await on_defect(_request, error)
    return answer(error)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's validation: broken JSON is 400, a value that may not be is 422 and names its field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 registered for this type only
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return answer(errors.Malformed("the body is not valid JSON"))
    message = str(first["msg"]).removeprefix("Value error, ")
    source, *loc = first["loc"]
    param = (place(loc, first["type"], error.body) if source == "body" else ".".join(map(str, loc))) or None
    if param is None and first["type"] in ("missing", "model_attributes_type", "dict_type"):
        said = request.headers.get("content-type", "")
        hint = "" if "json" in said else "; send it with Content-Type: application/json"
        return answer(errors.Malformed(f"the body must be a JSON object{hint}"))
    return answer(errors.InvalidValue(f"{param}: {message}" if param else message, param=param))


async def on_http(_request: Request, error: Exception) -> JSONResponse:
    """The framework's own: no such route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 registered for this type only
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
    body = {"message": str(error.detail), "type": "invalid_request_error", "code": code, "param": None}
    return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)


async def on_defect(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours: the trace goes to the log, never to the caller."""
    log.error("internal_error", path=request.url.path, exc_info=error)
    return answer(RelayError("internal error; it has been logged"))
