"""What a request's head may cost, whoever sends it."""

import hashlib
import json
import socket
from collections.abc import Iterator

import pytest

from relay.embedded import EmbeddedServer
from relay.keys import JOBS_INTERACTIVE
from relay.sse import Parser
from tests.support.servers import admin
from tests.support.system import Api, Worker

pytestmark = pytest.mark.timeout(180)
WITHIN_S = 60


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A server."""
    with EmbeddedServer() as redis:
        yield redis.url


@pytest.fixture(scope="module")
def api(redis_url: str) -> Iterator[Api]:
    """One node."""
    with Api(redis_url) as node:
        yield node


@pytest.fixture(autouse=True)
def _no_job_waits(redis_url: str) -> Iterator[None]:
    """No worker is here for most of these, and after some seconds a job that waits is pressure."""
    yield
    with admin(redis_url) as client:
        client.xtrim(JOBS_INTERACTIVE, 0, approximate=False)


@pytest.mark.parametrize("head", [b"GET /healthz HTTP/1.1\r\nx: ", b"GET /healthz?"])
def test_an_endless_head_is_refused(api: Api, head: bytes) -> None:
    """A header or a URL without end is answered 431 after 64 KiB, and the connection ends."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=WITHIN_S) as sock:
        sock.sendall(head)
        # What the kernels' buffers take is sent before the refusal is seen; 64 MiB is not.
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"a" * (64 * 1024 * 1024))
    assert api.call("GET", "/healthz").status == 200


def test_a_large_body_is_no_head(api: Api) -> None:
    """What comes with the head in one packet does not count as head."""
    body = b'{"model": "simulated", "prompt": "' + b"x" * 200_000 + b'"}'
    assert api.call("POST", "/v1/streams", body, {"content-type": "application/json"}).status == 201


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/chat/completions"])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_client_that_sends_all_before_it_reads_is_told_that_it_is_too_much(
    api: Api, path: str, framing: str
) -> None:
    """The rest of a body over the limit is read and dropped: 413 arrives, and no reset connection."""
    size = 20_000_000
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=WITHIN_S) as sock:
        if framing == "chunked":
            sock.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            sock.sendall(b"%x\r\n" % size + b" " * size + b"\r\n0\r\n\r\n")
        else:
            sock.sendall(f"{head}content-length: {size}\r\n\r\n".encode() + b" " * size)
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"NONSENSE /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET /v1/streams/\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno length\r\n",
    ],
)
def test_what_is_no_http_is_told_in_the_form_of_every_error(api: Api, head: bytes) -> None:
    """400 with the one body, and the connection ends."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=WITHIN_S) as sock:
        sock.sendall(head)
        told, _, body = everything(sock).partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in told.lower()
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["code"] == "malformed_request"


@pytest.mark.parametrize("between", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_garbage_after_a_request_is_not_answered_into_its_stream(api: Api, between: bytes) -> None:
    """A reader that sends what is no request loses its connection, and reads nothing that is no event."""
    made = api.create()
    with socket.create_connection(("127.0.0.1", api.port), timeout=WITHIN_S) as sock:
        sock.sendall(f"GET {made['events_url']} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        begun = b""
        while b": ok" not in begun:
            begun += sock.recv(4096)
        sock.sendall(between + b"\x16\x03\x01\r\n\r\n")
        assert b"HTTP/1.1" not in everything(sock)


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_http_1_0_is_answered_without_chunks(api: Api, redis_url: str, connection: str) -> None:
    """To a client of HTTP/1.0 (older proxies by default) a body without a length ends with the connection."""
    with Worker(redis_url):
        made = api.create(tokens=50)
        api.wait_status(made["id"], "completed")
    answers = {}
    for path in (made["events_url"], made["text_url"], "/healthz", "/v1/streams/none"):
        with socket.create_connection(("127.0.0.1", api.port), timeout=WITHIN_S) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\nhost: x\r\nconnection: {connection}\r\n\r\n".encode())
            head, _, answers[path] = everything(sock).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head.lower()
    assert answers["/healthz"] == b'{"status":"ok"}'
    assert answers[made["events_url"]].startswith(b": ok\n\n")
    events = Parser().feed(answers[made["events_url"]])
    text = "".join(json.loads(event.data)["text"] for event in events if event.event == "delta")
    assert answers[made["text_url"]].decode() == text
    done = json.loads(events[-1].data)
    assert done["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_an_answer_that_was_held_back_ends_for_http_1_0_too(api: Api, redis_url: str) -> None:
    """Chunks that are not sent are not waited for: the stream ends with its last event."""
    simulated = {"model": "simulated", "simulation": {"tokens": 3, "tokens_per_second": 0}}
    body = json.dumps({**simulated, "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\n"
    with Worker(redis_url), socket.create_connection(("127.0.0.1", api.port), timeout=WITHIN_S) as sock:
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = everything(sock)
    assert b"data: [DONE]\n\n" in answer
    assert b"\r\n6\r\n" not in answer


def everything(sock: socket.socket) -> bytes:
    """What comes until the other side closes, or has had enough."""
    parts = []
    try:
        while part := sock.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
