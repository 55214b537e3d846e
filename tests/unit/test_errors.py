"""Errors as answers: every class of the tree has its status, or is on the list of what nobody is told."""

import inspect
import json
import re
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from structlog.testing import capture_logs

from api.errors import STATUS, answer, body_of, on_defect, on_http, on_invalid, on_relay_error
from relay import errors
from relay.errors import RelayError, SourceFailed

# Errors that no request may cause: at a caller they are a defect of ours, logged, and told as 500.
OURS_ALONE = {
    RelayError,
    errors.ServerUnfit,  # at the start of a process
    errors.SettingsInvalid,  # the same
    errors.Fenced,  # of writers
    errors.Gap,
    errors.SourceFailed,  # told by an `error` event
    errors.Refused,
    errors.WireProtocol,
}
REQUEST = Request(
    {"type": "http", "method": "GET", "path": "/v1/streams", "headers": [], "query_string": b""}
)


def tree(root: type[RelayError] = RelayError) -> set[type[RelayError]]:
    """A class and all below it that are the relay's own."""
    return {root}.union(
        *(tree(child) for child in root.__subclasses__() if child.__module__ == "relay.errors")
    )


def an(kind: type[RelayError], **details: Any) -> RelayError:
    """An error of this class."""
    if kind is SourceFailed:
        return SourceFailed("x", "the secret detail", retryable=False)
    return errors.Gap(7) if kind is errors.Gap else kind("the secret detail", **details)


def told(response: JSONResponse) -> dict[str, Any]:
    """The one error in an answer."""
    body = json.loads(bytes(response.body))
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "code", "param"}
    error: dict[str, Any] = body["error"]
    return error


def invalid(model: type[BaseModel], value: object) -> RequestValidationError:
    """What FastAPI raises for a body."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(model).validate_python(value, from_attributes=True)  # as FastAPI does
    return RequestValidationError(
        [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()], body=value
    )


def test_every_error_has_a_status_or_a_reason() -> None:
    """A class added to the tree must be given a status, or be put among those that no request may cause."""
    assert set(STATUS) | OURS_ALONE == tree()
    assert set(STATUS) & OURS_ALONE == set()


def test_the_table_is_the_contract_s() -> None:
    """The statuses that the contract names, each for its errors."""
    by_status: dict[int, set[str]] = {}
    for kind, status in STATUS.items():
        by_status.setdefault(status, set()).add(kind.__name__)
    assert by_status == {
        400: {"Malformed"},
        401: {"Unauthorized"},
        403: {"Forbidden"},
        404: {"NotFound", "StreamLost"},
        409: {"Conflict"},
        410: {"Expired"},
        413: {"TooLarge"},
        422: {"InvalidValue"},
        429: {"Overloaded"},
        503: {"Unavailable", "ConnectionLost", "Redirected", "Draining", "OutOfMemory"},
    }


def test_codes_are_unique() -> None:
    """A code tells one error from all others: clients switch on it."""
    codes = [kind.code for kind in tree() - {SourceFailed}]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_the_drawing_is_the_tree() -> None:
    """The module's docstring shows every class, and none that is gone."""
    drawing = inspect.getdoc(errors) or ""
    drawn = set(re.findall(r"[├└]── ([A-Z]\w+)", drawing)) | {"RelayError"}
    assert drawn == {kind.__name__ for kind in tree()}


@pytest.mark.parametrize("kind", sorted(STATUS, key=str))
async def test_an_error_is_told_by_its_code(kind: type[RelayError]) -> None:
    """Every error that a request may cause is answered by its status, its code and its message."""
    response = await on_relay_error(REQUEST, an(kind, param="the_field"))
    assert response.status_code == STATUS[kind]
    assert told(response) == {
        "message": "the secret detail",
        "type": kind.type,
        "code": kind.code,
        "param": "the_field",
    }


@pytest.mark.parametrize("kind", sorted(OURS_ALONE, key=str))
async def test_what_is_ours_alone_is_not_told(kind: type[RelayError]) -> None:
    """An error that no request may cause is a 500 without its words, which go to the log."""
    with capture_logs() as logs:
        response = await on_relay_error(REQUEST, an(kind))
    assert response.status_code == 500
    assert "secret" not in json.dumps(told(response))
    assert [entry["event"] for entry in logs] == ["internal_error"]


async def test_a_defect_is_not_told() -> None:
    """A bug is a 500 without its trace or its words."""
    with capture_logs() as logs:
        response = await on_defect(REQUEST, KeyError("the secret detail"))
    assert response.status_code == 500
    assert told(response)["code"] == "internal_error"
    assert b"secret" not in bytes(response.body)
    assert b"Traceback" not in bytes(response.body)
    assert logs[0]["path"] == "/v1/streams"


@pytest.mark.parametrize("kind", [kind for kind, status in STATUS.items() if status in {429, 503}])
def test_what_may_be_tried_again_says_when(kind: type[RelayError]) -> None:
    """429 and 503 carry Retry-After in whole seconds, never zero and never sooner than was asked."""
    assert answer(an(kind)).headers["retry-after"] == "1"
    assert answer(an(kind, retry_after_s=0.01)).headers["retry-after"] == "1"
    assert answer(an(kind, retry_after_s=2.3)).headers["retry-after"] == "3"


@pytest.mark.parametrize("kind", [kind for kind, status in STATUS.items() if status not in {429, 503}])
def test_what_may_not_be_tried_again_does_not_say_when(kind: type[RelayError]) -> None:
    """Other statuses carry no Retry-After: the same request would fail the same way."""
    assert "retry-after" not in answer(an(kind)).headers


def test_unauthorized_says_how() -> None:
    """401 names the scheme, as RFC 9110 section 11.6.1 demands; 403 does not."""
    assert answer(errors.Unauthorized("x")).headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in answer(errors.Forbidden("x")).headers


def test_a_message_may_be_any_text() -> None:
    """Messages hold what callers sent: the body is JSON whatever that was."""
    message = "no model '\x00\n\"🌊\\'"
    assert told(answer(errors.NotFound(message)))["message"] == message
    assert body_of(errors.NotFound(message))["error"]["param"] is None


class Inner(BaseModel):
    """A nested value."""

    size: int


class Body(BaseModel):
    """A body."""

    name: str
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"name": 7}, "name"),
        ({}, "name"),
        ({"name": "x", "inner": {"size": "big"}}, "inner.size"),
        ({"name": "x", "inner": 4}, "inner"),
    ],
)
async def test_a_wrong_value_names_its_field(value: object, param: str) -> None:
    """Validation's first error is a 422 that names the field, nested ones by their path."""
    response = await on_invalid(REQUEST, invalid(Body, value))
    assert response.status_code == 422
    assert told(response)["param"] == param
    assert told(response)["message"].startswith(f"{param}: ")
    assert told(response)["code"] == "invalid_value"


@pytest.mark.parametrize("value", [None, [], "text", 7])
async def test_a_body_that_is_no_object_is_malformed(value: object) -> None:
    """A body that is JSON and not an object is 400: there is no field to name."""
    response = await on_invalid(REQUEST, invalid(Body, value))
    assert response.status_code == 400
    assert told(response)["code"] == "malformed_request"


async def test_broken_json_is_malformed() -> None:
    """A body that is no JSON is 400, and is not repeated in the answer."""
    error = {
        "type": "json_invalid",
        "loc": ("body", 3),
        "msg": "JSON decode error",
        "ctx": {"error": "secret"},
    }
    response = await on_invalid(REQUEST, RequestValidationError([error]))
    assert response.status_code == 400
    assert b"secret" not in bytes(response.body)


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (400, "malformed_request")]
)
async def test_the_framework_s_errors_have_our_form(status: int, code: str) -> None:
    """No such route and no such method are told in the one form, with the framework's headers."""
    response = await on_http(REQUEST, HTTPException(status, headers={"Allow": "GET"}))
    assert response.status_code == status
    assert told(response)["code"] == code
    assert response.headers["allow"] == "GET"
