"""What each route answers and refuses: one row a route, and the words for its parameters. Data, no code."""

from typing import Any, NamedTuple

from api.reference import examples as ex

JSON, SSE, TEXT = "application/json", "text/event-stream", "text/plain"


class Doc(NamedTuple):
    """A route: its title, its answers by status and media type, what it refuses, and a request."""

    title: str
    answers: dict[int, dict[str, Any]]
    refuses: tuple[int, ...] = ()
    request: dict[str, Any] | None = None
    is_open: bool = False  # needs no key
    headers: tuple[str, ...] = ()


_SEEN = (401, 403, 404, 410, 503)  # of a response that is there
_MADE = (400, 401, 409, 413, 422, 429, 503)
_OPENAI = (400, 401, 404, 409, 413, 422, 429, 500, 502, 503, 504)

ROUTES: dict[tuple[str, str], Doc] = {
    ("post", "/v1/streams"): Doc(
        "Create a response",
        {201: {JSON: ex.CREATED}},
        (*_MADE, 404),
        ex.CREATE,
        headers=("Location", "Relay-Stream"),
    ),
    ("get", "/v1/streams"): Doc(
        "List recent responses", {200: {JSON: {"object": "list", "data": [ex.STATUS]}}}, (401, 503)
    ),
    ("get", "/v1/streams/{response_id}"): Doc("Describe a response", {200: {JSON: ex.STATUS}}, _SEEN),
    ("delete", "/v1/streams/{response_id}"): Doc(
        "Cancel a response", {202: {JSON: {"id": ex.ID, "status": "cancelled"}}}, _SEEN
    ),
    ("get", "/v1/streams/{response_id}/text"): Doc(
        "The text so far", {200: {TEXT: "Hello"}}, _SEEN, headers=("Relay-Position", "Relay-Status")
    ),
    ("get", "/v1/streams/{response_id}/events"): Doc(
        "Read a response",
        {200: {SSE: ex.EVENTS}, 204: {}},
        (400, *_SEEN, 422, 429),
        headers=("Relay-Consumer", "Relay-Position"),
    ),
    ("post", "/v1/streams/{response_id}/consumers/{consumer}/ack"): Doc(
        "Acknowledge", {204: {}}, (400, *_SEEN, 422), {"position": 4211}
    ),
    ("get", "/v1/events"): Doc(
        "Read many responses",
        {200: {SSE: ex.MANY}, 204: {}},
        (400, *_SEEN, 422, 429),
        headers=("Relay-Connection",),
    ),
    ("post", "/v1/events/{connection}/streams"): Doc(
        "Change what a connection reads", {202: {JSON: ex.CHANGED}}, (400, *_SEEN, 422), ex.CHANGE
    ),
    ("get", "/v1/models"): Doc("List models", {200: {JSON: {"object": "list", "data": [ex.MODEL]}}}, (401,)),
    ("get", "/v1/models/{name}"): Doc("Describe a model", {200: {JSON: ex.MODEL}}, (401, 404)),
    ("post", "/v1/chat/completions"): Doc(
        "Chat completion",
        {200: {JSON: ex.COMPLETION, SSE: ex.CHUNKS}},
        _OPENAI,
        ex.CHAT,
        headers=("Relay-Stream",),
    ),
    ("post", "/v1/responses"): Doc(
        "Create a response, in the form of the Responses API",
        {200: {JSON: ex.RESPONSE, SSE: ex.RESPONSE_EVENTS}},
        _OPENAI,
        ex.ASK,
        headers=("Relay-Stream",),
    ),
    ("get", "/v1/responses/{response_id}"): Doc(
        "Retrieve a response, in the form of the Responses API",
        {200: {JSON: ex.RESPONSE, SSE: ex.RESPONSE_EVENTS}},
        (400, *_SEEN, 422, 429),
        headers=("Relay-Stream",),
    ),
    ("post", "/v1/responses/{response_id}/cancel"): Doc(
        "Cancel a response, in the form of the Responses API",
        {200: {JSON: {**ex.RESPONSE, "status": "cancelled"}}},
        _SEEN,
    ),
    ("get", "/healthz"): Doc("Is it alive", {200: {JSON: {"status": "ok"}}}, is_open=True),
    ("get", "/readyz"): Doc("Does it take work", {200: {JSON: {"status": "ready"}}}, (503,), is_open=True),
    ("get", "/metrics"): Doc("Metrics", {200: {TEXT: ex.METRICS}}, (401,)),
}

PARAMETERS = {
    "response_id": "The id of a response.",
    "consumer": "The name of a reader, 1 to 64 of A-Z a-z 0-9 . _ -; one that returns by name goes on.",
    "after": "Go on after this position, an event's id.",
    "last-event-id": "The same, as an EventSource sends it; comes before `after`.",
    "window": "Explicit acknowledgements: at most so many bytes beyond the last one are sent.",
    "idempotency-key": "The same key and body make one response, and answer with it for a day.",
    "streams": "ID[@POSITION], separated by commas, at most 32.",
    "keep": "Stay open when all are over, for more to be added.",
    "connection": "The id of an open connection, from its first event and `Relay-Connection`.",
    "name": "The public name of a model.",
    "stream": "The events, and not the object.",
    "starting_after": "Go on after the event with this sequence number.",
}
HEADERS = {
    "Location": "Where the response is.",
    "Relay-Stream": "The id of the response: it can be read and resumed at /v1/streams/{id}/events.",
    "Relay-Position": "The position where this begins, or up to which this is.",
    "Relay-Status": "The status of the response.",
    "Relay-Consumer": "The name of this reader.",
    "Relay-Connection": "The id of this connection.",
}
# type, code, message, param
ERRORS: dict[int, tuple[str, str, str, str | None]] = {
    400: ("invalid_request_error", "malformed_request", "the body is not valid JSON", None),
    401: ("authentication_error", "unauthorized", "this call needs a key: Authorization: Bearer KEY", None),
    403: ("permission_error", "forbidden", "this response belongs to another key", None),
    404: ("invalid_request_error", "not_found", "never made, or its retention has ended", None),
    409: (
        "invalid_request_error",
        "conflict",
        "this Idempotency-Key was used for another body",
        "Idempotency-Key",
    ),
    410: ("invalid_request_error", "expired", "the retention of this response has ended", None),
    413: ("invalid_request_error", "too_large", "the body is larger than 1048576 bytes", None),
    422: ("invalid_request_error", "invalid_value", "temperature: must be at most 2", "temperature"),
    429: ("rate_limit_error", "overloaded", "too much is running: try again", None),
    500: ("server_error", "internal_error", "internal error; it has been logged", None),
    502: ("server_error", "upstream_cut", "the upstream ended the stream without a finish", None),
    503: ("server_error", "unavailable", "no connection to Redis", None),
    504: ("server_error", "upstream_timeout", "the upstream sent nothing for 120 s", None),
}
