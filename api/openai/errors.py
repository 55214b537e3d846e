"""Errors in the words of the SDKs: the status decides which exception they raise."""

import math
from typing import Any

from starlette.responses import JSONResponse

from api import errors
from relay.errors import InvalidValue, NotFound, RelayError

# Of what a response ends with, before anything of it was sent. Others are 502: the upstream's fault.
STATUS = {
    "upstream_rejected": 400,
    "upstream_auth": 401,
    "upstream_model": 404,
    "upstream_rate_limited": 429,
    "upstream_timeout": 504,
    "worker_lost": 503,
    "stream_lost": 503,
    "poison": 500,
    "internal_error": 500,
}
# Of a rejection by the upstream, as it was: these are about the request. Others are 400.
_PASSED = frozenset((400, 409, 413, 415, 422))
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error"}


def refused(error: RelayError) -> JSONResponse:
    """An error of ours. OpenAI answers 400 to a field that is wrong, where our own endpoints answer 422."""
    response = errors.answer(error)
    if isinstance(error, InvalidValue):
        response.status_code = 400
    if isinstance(error, NotFound) and error.param == "model":
        body = errors.body_of(error)
        body["error"]["code"] = "model_not_found"
        return JSONResponse(body, status_code=404)
    return response


def failed(response_id: str, data: dict[str, Any]) -> JSONResponse:
    """The answer where a response failed before it began, from its `error` event."""
    status = STATUS.get(str(data.get("code")), 502)
    if status == 400 and (said := (data.get("upstream") or {}).get("status")) in _PASSED:
        status = said
    headers = {"Relay-Stream": response_id}
    if status in (429, 503):
        headers["Retry-After"] = str(math.ceil(data.get("retry_after_s") or errors.RETRY_AFTER_S))
    return JSONResponse(body_of(data, status), status_code=status, headers=headers)


def body_of(data: dict[str, Any], status: int | None = None) -> dict[str, Any]:
    """The body of an error, from the `error` event that the native stream ends with.

    A rejection is told in the upstream's own words, as if it had been asked directly.
    """
    code = data.get("code")
    status = status or STATUS.get(str(code), 502)
    kind = "rate_limit_error" if status == 429 else _TYPES.get(status, "server_error")
    error = {"message": data.get("message"), "type": kind, "code": code, "param": None}
    if said := data.get("upstream"):
        told = {name: value for name, value in said.items() if name != "status" and value != ""}
        error = {**error, "type": "invalid_request_error", "code": None, **told}
    return {"error": error}
