"""What a request's head may cost, whoever sends it."""

import socket
from collections.abc import Iterator

import pytest

from relay.embedded import EmbeddedServer
from tests.support.system import Api


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """One node."""
    with EmbeddedServer() as redis, Api(redis.url) as node:
        yield node


@pytest.mark.parametrize("head", [b"GET /healthz HTTP/1.1\r\nx: ", b"GET /healthz?"])
def test_an_endless_head_is_refused(api: Api, head: bytes) -> None:
    """A header or a URL without end is answered 431 after 64 KiB, and the connection ends."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as sock:
        sock.sendall(head)
        # What the kernels' buffers take is sent before the refusal is seen; 64 MiB is not.
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"a" * (64 * 1024 * 1024))
    assert api.call("GET", "/healthz").status == 200


def test_a_large_body_is_no_head(api: Api) -> None:
    """What comes with the head in one packet does not count as head."""
    body = b'{"model": "simulated", "prompt": "' + b"x" * 200_000 + b'"}'
    assert api.call("POST", "/v1/streams", body, {"content-type": "application/json"}).status == 201
