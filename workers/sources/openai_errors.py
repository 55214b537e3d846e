"""What an OpenAI-compatible upstream's refusals mean. Pure.

| upstream says                   | code                    | try again |
|---------------------------------|-------------------------|-----------|
| 401, 403                        | `upstream_auth`         | no        |
| 404                             | `upstream_model`        | no        |
| 408                             | `upstream_timeout`      | yes       |
| 429                             | `upstream_rate_limited` | yes, after Retry-After |
| 5xx                             | `upstream_error`        | yes, after Retry-After |
| 400, 422, and every other one   | `upstream_rejected`     | no        |

The same table holds for an error object in the stream that tells its status; one that does not is an
`upstream_error`. Only a rejection and an error in the stream carry the upstream's own words, because
only those are about the caller's request; bounded, and without the key. A rejection also keeps its parts,
for who asked in OpenAI's words and is to be answered in them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from relay.errors import SourceFailed

MESSAGE_MAX_CHARS = 500
PART_MAX_CHARS = 100
PARTS_MAX = 8
_PARTS_FIRST = ("type", "code", "param")
RETRY_AFTER_MAX_S = 3600.0

_FIXED = {
    401: ("upstream_auth", "the upstream refuses our credentials", False),
    403: ("upstream_auth", "the upstream refuses our credentials", False),
    404: ("upstream_model", "the upstream does not have this model, or nothing at this address", False),
    408: ("upstream_timeout", "the upstream gave up waiting", True),
    429: ("upstream_rate_limited", "the upstream limits our rate", True),
}


def refusal(status: int, headers: Mapping[str, str], body: bytes, *, secret: str | None) -> SourceFailed:
    """An answer whose status is not 200. Header names are lower-case; `body` may be cut short."""
    return _failure(
        status,
        _words(parsed := _json(body)) or body.decode("utf-8", "replace"),
        parsed,
        retry_after_s=_retry_after_s(headers.get("retry-after")),
        secret=secret,
    )


def in_stream(error: object, *, secret: str | None) -> SourceFailed:
    """An error object, or text, that came in the place of a chunk."""
    status = _status(error)
    said = _words(error)
    if 400 <= status < 500:
        return _failure(status, said, error, retry_after_s=None, secret=secret)
    message = _with("the upstream reports an error", said, secret)
    return SourceFailed("upstream_error", message, retryable=True)


def _failure(
    status: int, said: str, error: object, *, retry_after_s: float | None, secret: str | None
) -> SourceFailed:
    if status in _FIXED:
        code, message, retryable = _FIXED[status]
    elif status >= 500:
        code, message, retryable = "upstream_error", "the upstream failed", True
    else:
        code, message, retryable = "upstream_rejected", "the upstream rejects the request", False
    message = f"{message} (status {status})"
    upstream = None
    if code == "upstream_rejected":
        message = _with(message, said, secret)
        upstream = {"status": status, "message": _bounded(said, secret), **_parts(error, secret)}
    return SourceFailed(
        code,
        message,
        retryable=retryable,
        retry_after_s=retry_after_s if retryable else None,
        upstream=upstream,
    )


def _parts(error: object, secret: str | None) -> dict[str, Any]:
    """`type`, `code`, `param` and what else is told in a word or a number: `n_ctx`, `limit` ..."""
    fields: dict[str, Any] = error if isinstance(error, dict) else {}
    if isinstance(fields.get("error"), dict):
        fields = fields["error"]
    found: dict[str, Any] = {}
    others = fields.keys() - set(_PARTS_FIRST) - {"message", "status", "error", "detail", "object"}
    for name in (*_PARTS_FIRST, *sorted(others)):
        value = fields.get(name)
        if isinstance(value, str):
            found[name[:PART_MAX_CHARS]] = _bounded(value, secret)[:PART_MAX_CHARS]
        elif type(value) is int and abs(value) < 2**53:
            found[name[:PART_MAX_CHARS]] = value
        if len(found) == PARTS_MAX:
            break
    return found


def _with(message: str, said: str, secret: str | None) -> str:
    said = _bounded(said, secret)
    return f"{message}: {said}" if said else message


def _bounded(said: str, secret: str | None) -> str:
    """In one line, without the key."""
    if secret:
        said = said.replace(secret, "***")
    return " ".join(said.split())[:MESSAGE_MAX_CHARS]


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _words(value: object) -> str:
    """The message in the shapes that are about: OpenAI's, vLLM's, FastAPI's, plain text."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for name in ("error", "message", "detail"):
            if value.get(name):
                return _words(value[name]) or orjson.dumps(value[name]).decode()
    return ""


def _status(error: object) -> int:
    """The HTTP status in an error object, under the names that are about; 0 when there is none."""
    fields: dict[str, Any] = error if isinstance(error, dict) else {}
    for name in ("code", "status", "status_code"):
        value = fields.get(name)
        if str(value).isdecimal() and 400 <= int(str(value)[:9]) < 600:
            return int(str(value))
    return 0


def _retry_after_s(value: str | None) -> float | None:
    """RFC 9110 section 10.2.3: seconds, or a date."""
    if value is None:
        return None
    value = value.strip()
    if value.isdecimal():
        return min(float(value[:9]), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(value)
        seconds = (moment - datetime.now(moment.tzinfo or UTC)).total_seconds()
    except (ValueError, TypeError):  # no date; or one without a zone, which has no meaning here
        return None
    return min(max(0.0, seconds), RETRY_AFTER_MAX_S)
