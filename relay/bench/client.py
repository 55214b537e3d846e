"""One reader on a raw socket, as slow as a scenario wants it, that can tell what its kernel holds for it.

Nothing is read but by `read`. `text_bytes` is what was read; `confirmed_bytes` adds what lies in the socket's
receive buffer, which the other side has had acknowledged: that much the client has, whether it looks or not.
"""

import copy
import http.client
import socket
import time
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

from relay.bench.frames import Frames, fields, split_head
from relay.errors import Unavailable

RECEIVE_BUFFER_BYTES = 4096
_PEEK_BYTES = 8 * 1024 * 1024
_TIMEOUT_S = 15.0
_DELTA = b"event: delta"


def call(url: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One request on a connection of its own: the status, and the JSON of the answer (None without any)."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)
    try:
        data = None if body is None else orjson.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{method} {url}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    return answer.status, orjson.loads(text) if is_json and text else None


def create(url: str, **body: object) -> str:
    """Make a response; its id. Raises Unavailable when it is refused."""
    status, answer = call(url, "POST", "/v1/streams", {"prompt": "bench", **body})
    if status != 201:
        raise Unavailable(f"POST {url}/v1/streams answered {status}: {answer}")
    return str(answer["id"])


class Client:
    """A reader of one response. A context manager: the connection ends with the block.

    `is_right(offset, text)` judges each piece of content that is read; `is_exact` holds while all were right.
    `small` asks for a small receive buffer, before the connection is made, so that the window is small.
    """

    def __init__(
        self,
        url: str,
        response_id: str,
        *,
        query: str = "",
        small: bool = True,
        is_right: Callable[[int, bytes], bool] = lambda _offset, _text: True,
    ) -> None:
        self.text_bytes = self.received_bytes = 0
        self.last_id = b""
        self.is_exact = True
        self.ended: str | None = None  # the name of the event that ended the response, or "closed"
        self.notices: list[tuple[float, str]] = []  # when each was read, by time.monotonic, and its kind
        self._is_right = is_right
        self._head = b""
        self._frames: Frames | None = None
        parts = urlsplit(url)
        self._sock = socket.socket()
        try:
            if small:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            self._sock.settimeout(_TIMEOUT_S)
            self._sock.connect((parts.hostname or "", parts.port or 80))
            path = f"/v1/streams/{response_id}/events{query}"
            self._sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        except OSError as error:
            self._sock.close()
            raise Unavailable(f"{url}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def read(self, size: int, within_s: float) -> int:
        """Read once, at most `size` bytes, waiting so long for the first; how many came."""
        if self.ended is not None:
            return 0
        self._sock.settimeout(within_s)
        try:
            data = self._sock.recv(size)
        except (TimeoutError, BlockingIOError):
            return 0
        except OSError:
            data = b""
        if not data:
            self.ended = "closed"
        self.received_bytes += len(data)
        for frame in self._framed(data):
            self._take(frame)
        return len(data)

    def read_until(self, reached: Callable[[Self], bool], within_s: float) -> bool:
        """Read as fast as it comes until `reached`; False when it is not within the time."""
        deadline = time.monotonic() + within_s
        while not reached(self):
            left = deadline - time.monotonic()
            if left <= 0 or self.ended is not None:
                return False
            self.read(65_536, min(left, 0.05))
        return True

    @property
    def confirmed_bytes(self) -> int:
        """Content in whole events that the client's kernel has, read or not."""
        if self._frames is None or self.ended is not None:
            return self.text_bytes
        try:
            data = self._sock.recv(_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return self.text_bytes
        return self.text_bytes + sum(len(_content(frame)) for frame in copy.copy(self._frames).feed(data))

    @property
    def offset(self) -> int:
        """The position of the last event read."""
        return int(self.last_id.partition(b"-")[0] or 0)

    def _framed(self, data: bytes) -> list[bytes]:
        if self._frames is not None:
            return self._frames.feed(data)
        self._head += data
        split = split_head(self._head)
        if split is None:
            return []
        head, rest = split
        if head.status != 200:
            raise Unavailable(f"the events were answered {head.status}: {rest[:200]!r}")
        self._frames = Frames()
        return self._frames.feed(rest) if rest else []

    def _take(self, frame: bytes) -> None:
        name, ident, data = fields(frame)
        self.last_id = ident or self.last_id
        if name == b"delta":
            content = _content(frame)
            self.is_exact = self.is_exact and self._is_right(self.text_bytes, content)
            self.text_bytes += len(content)
        elif name == b"notice":
            self.notices.append((time.monotonic(), str(orjson.loads(data).get("kind"))))
        elif name in (b"done", b"error"):
            self.ended = name.decode()


def _content(frame: bytes) -> bytes:
    """The content of a frame; empty when it is not a delta of the content."""
    name, _, data = fields(frame) if _DELTA in frame else (b"", b"", b"")
    delta = orjson.loads(data) if name == b"delta" else {}
    return delta["text"].encode() if delta.get("channel") == "content" else b""
