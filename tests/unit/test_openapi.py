"""The OpenAPI document is complete, and its examples are what the code takes and answers."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from api.app import create_app
from api.errors import STATUS
from api.openai.requests import parse
from api.openai.response_object import parse as parse_response
from api.reference import examples
from api.reference.routes import ERRORS, ROUTES
from relay.errors import RelayError
from relay.requests import StreamRequest
from relay.sse import Parser

State: Any = SimpleNamespace
STATE = State(locks=State(required=False), settings=State(max_body_bytes=1, otlp_endpoint=None))
DOCUMENT: dict[str, Any] = create_app(STATE).openapi()
OPERATIONS = {
    (method, path): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
NAMES = [f"{method} {path}" for method, path in OPERATIONS]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    """A new route is described in api/reference/routes.py, or this fails."""
    assert ROUTES.keys() == OPERATIONS.keys()


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=NAMES)
def test_a_route_is_described(method: str, path: str) -> None:
    """A title, what it does, words for each parameter, examples of what is sent and of each answer."""
    operation = OPERATIONS[method, path]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    for parameter in operation.get("parameters", ()):
        assert parameter["description"], parameter
    if "requestBody" in operation:
        assert operation["requestBody"]["content"]["application/json"]["example"]
    for status, answer in operation["responses"].items():
        assert answer["description"]
        assert status == "204" or answer["content"]
        for content in answer.get("content", {}).values():
            assert content["example"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=NAMES)
def test_errors_have_one_body(method: str, path: str) -> None:
    """Its four fields, and a Retry-After where the status promises one; no key, no call."""
    operation = OPERATIONS[method, path]
    for status, answer in operation["responses"].items():
        if status >= "400":
            content = answer["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Error"}
            assert content["example"]["error"].keys() == {"message", "type", "code", "param"}
            assert ("headers" in answer) == (status in {"429", "503"})
    assert ("401" in operation["responses"]) == bool(operation["security"])


def test_references_lead_somewhere() -> None:
    """Nothing points at what is not there."""
    for node in nodes(DOCUMENT):
        if isinstance(reference := node.get("$ref"), str):
            assert reference.removeprefix("#/components/schemas/") in DOCUMENT["components"]["schemas"]


@pytest.mark.parametrize("status", ERRORS)
def test_error_examples_are_errors_of_ours(status: int) -> None:
    """Type and code as the code has them."""
    kind, code, _, _ = ERRORS[status]
    known = {(error.type, error.code) for error, mapped in STATUS.items() if mapped == status}
    upstream = {"upstream_cut", "upstream_timeout"}
    assert (kind, code) in known or code in upstream or (kind, code) == (RelayError.type, RelayError.code)


def test_request_examples_are_taken() -> None:
    """By the very functions that take them."""
    StreamRequest.model_validate(examples.CREATE)
    assert parse(examples.CHAT).include_usage
    assert parse_response(examples.ASK).stream


@pytest.mark.parametrize("name", ["EVENTS", "MANY", "CHUNKS", "RESPONSE_EVENTS"])
def test_event_examples_are_event_streams(name: str) -> None:
    """Whole events, each with data."""
    events = Parser().feed(getattr(examples, name).encode())
    assert events
    assert all(event.data for event in events)
