"""What an upstream's refusals are taken to mean."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson
import pytest

from workers.sources.openai_errors import MESSAGE_MAX_CHARS, RETRY_AFTER_MAX_S, in_stream, refusal

KEY = "sk-0123456789"


def said(body: Any) -> str:
    """The message of a rejection with this body."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return refusal(400, {}, data, secret=KEY).message.removeprefix(
        "the upstream rejects the request (status 400)"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no"}}, ": no"),
        ({"error": "no"}, ": no"),
        ({"message": "no"}, ": no"),
        ({"detail": "no"}, ": no"),
        ({"detail": [{"loc": ["body"]}]}, ': [{"loc":["body"]}]'),
        ({"error": {"code": 5}}, ': {"code":5}'),
        (b"plain\r\n\r\n  text", ": plain text"),
        (b"\xff\xfe", ": \ufffd\ufffd"),
        (b"", ""),
        ({"error": {"message": f"bad key {KEY}!"}}, ": bad key ***!"),
        ({"message": "x" * 1000}, ": " + "x" * MESSAGE_MAX_CHARS),
    ],
)
def test_words(body: Any, words: str) -> None:
    """The upstream's words are found in the shapes that are about, in one line, bounded, without the key."""
    assert said(body) == words


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_words_that_are_not_the_callers(status: int) -> None:
    """Only a rejection quotes the upstream: other failures are not about the caller's request."""
    assert "internals" not in refusal(status, {}, b'{"error": "internals"}', secret=None).message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("9" * 400, RETRY_AFTER_MAX_S),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2999 07:28:00 GMT", RETRY_AFTER_MAX_S),
        ("Wed, 99 Oct 2999 07:28:00 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Retry-After is seconds or a date, bounded; anything else is as if it were not there."""
    headers = {} if value is None else {"retry-after": value}
    assert refusal(429, headers, b"", secret=None).retry_after_s == seconds
    assert refusal(400, headers, b"", secret=None).retry_after_s is None


def test_retry_after_date() -> None:
    """A date is turned into the seconds from now."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    seconds = refusal(503, {"retry-after": date}, b"", secret=None).retry_after_s
    assert seconds == pytest.approx(100, abs=5)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"code": 400}, "upstream_rejected", False),
        ({"code": "401"}, "upstream_auth", False),
        ({"status": 404}, "upstream_model", False),
        ({"status_code": 429}, "upstream_rate_limited", True),
        ({"code": 502}, "upstream_error", True),
        ({"code": "rate_limit_exceeded"}, "upstream_error", True),
        ({"code": True}, "upstream_error", True),
        ({"code": "4" * 5000}, "upstream_error", True),
        ({"code": None, "status": 429}, "upstream_rate_limited", True),
        ("boom", "upstream_error", True),
        (None, "upstream_error", True),
        (5, "upstream_error", True),
        ([], "upstream_error", True),
    ],
)
def test_in_stream(error: Any, code: str, retryable: bool) -> None:
    """An error in the stream is judged by the status it tells; one that tells none may be tried again."""
    failure = in_stream(error, secret=None)
    assert (failure.failure_code, failure.failure_retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (
            {"error": {"message": "no", "type": "invalid_request_error", "param": "seed", "code": "bad"}},
            {"type": "invalid_request_error", "param": "seed", "code": "bad"},
        ),
        ({"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400},
         {"type": "BadRequestError", "code": 400}),
        ({"error": {"message": "no", "code": f"x{KEY}", "param": "p" * 500, "type": ["t"]}},
         {"code": "x***", "param": "p" * 100}),
        ({"error": "no"}, {}),
        ({"error": {"message": "no", "n_ctx": 4096, "big": 2**60, "status": 1, "deep": {}}}, {"n_ctx": 4096}),
    ],
)  # fmt: skip
def test_a_rejection_keeps_its_parts(body: Any, parts: dict[str, Any]) -> None:
    """What it says of the field and the kind stays apart from our own code; bounded, without the key."""
    found = refusal(422, {}, orjson.dumps(body), secret=KEY)
    assert found.failure_code == "upstream_rejected"
    assert found.upstream == {"status": 422, "message": "no", **parts}
    assert refusal(500, {}, orjson.dumps(body), secret=KEY).upstream is None
