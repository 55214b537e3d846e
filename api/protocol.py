"""The client's socket, down to what its kernel has acknowledged.

`await send()` in ASGI means "copied to a buffer". A subclass of uvicorn's protocol gives each request
the connection's `ClientSocket` in `scope["extensions"]["relay.socket"]`: it writes body chunks and tells
how many bytes the client's kernel has not acknowledged yet. The listener is prepared so that a slow
client shows within about 100 KB: TCP_NOTSENT_LOWAT is inherited by accepted sockets, and the
transport's own buffer is small. tcp(7), `SIOCOUTQ`; https://docs.kernel.org/networking/ip-sysctl.html

Where the ioctl is missing (macOS), the view falls back to the transport's write buffer.
"""

import asyncio
import fcntl
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api import sse
from api.condition import TcpTimes
from relay.errors import SettingsInvalid
from relay.settings import Settings

EXTENSION = "relay.socket"
WRITE_BUFFER_HIGH = 4096
HEAD_MAX_BYTES, HEAD_WITHIN_S = 65_536, 30.0  # of a request's line and headers
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SIOCOUTQ = 0x5411  # TIOCOUTQ: unsent and unacknowledged bytes of a socket
_HAS_OUTQ = sys.platform == "linux"
_CHUNK = b"%x\r\n%b\r\n"
_ZERO = b"\0\0\0\0"
# Of struct tcp_info: tcpi_busy_time and tcpi_rwnd_limited, two unsigned 64-bit counts of microseconds.
_INFO_AT, _INFO_SIZE, _INFO_TIMES = 168, 184, struct.Struct("=2Q")
_TCP_CLOSE = 7  # of tcp_states.h, the first byte of struct tcp_info
_LOOK_FIRST_S, _LOOK_LAST_S = 0.02, 1.0  # at a connection whose client has closed its side
_TO_THE_END = sys.maxsize  # the length of a body that ends with its connection


def _refusal(status: str, code: str, message: str) -> bytes:
    """A whole answer to what never becomes a request: in the form of all errors, and the connection ends."""
    error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
    body = orjson.dumps({"error": error})
    head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body)


class ClientSocket:
    """One client connection: chunks out, acknowledged bytes back.

    `written` counts the bytes that were handed to the transport since the connection began. Of these,
    `outstanding` are not known to be acknowledged; both count chunk framing.
    """

    __slots__ = (
        "_fd",
        "_fresh",
        "_is_lost",
        "_loop",
        "_on_lost",
        "_sock",
        "_transport",
        "is_chunked",
        "written",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = transport.get_extra_info("socket")
        self._fd: int = self._sock.fileno() if self._sock is not None else -1
        self._fresh = 0  # bytes that the transport has not counted yet: it writes at the end of the turn
        self.written = 0
        self.is_chunked = True
        self._is_lost = False
        self._on_lost: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        """Send `data` as one chunk of the body. Never blocks: the caller keeps within its credit."""
        if self._is_lost:
            return
        chunk = _CHUNK % (len(data), data) if self.is_chunked else data
        if not self._fresh:
            self._loop.call_soon(self._settle)
        self._fresh += len(chunk)
        self.written += len(chunk)
        self._transport.write(chunk)

    def framed(self, size: int) -> int:
        """See `api.sink.Framing`."""
        return size + len(_CHUNK % (size, b"")) * self.is_chunked

    def outstanding(self) -> int:
        """Bytes written and not yet acknowledged by the client's kernel. With TLS or a proxy: coarser."""
        # uvloop counts a write only after it has tried it, at the end of the turn: until then, all is out.
        buffered = self._transport.get_write_buffer_size() + self._fresh
        if not _HAS_OUTQ or self._fd < 0:
            return buffered
        try:
            queued = fcntl.ioctl(self._fd, _SIOCOUTQ, _ZERO)
        except OSError:
            return buffered
        return buffered + int.from_bytes(queued, sys.byteorder)

    def times(self) -> TcpTimes | None:
        """For how long bytes have waited here, and how much of that for the client; None where unknown."""
        if self._fd < 0 or not _HAS_OUTQ or self._sock is None:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
        except OSError:
            return None
        return TcpTimes(*_INFO_TIMES.unpack_from(info, _INFO_AT)) if len(info) >= _INFO_SIZE else None

    @property
    def is_reset(self) -> bool:
        """Whether the kernel knows the connection to be gone; also where nothing reads that would notice."""
        if self._fd < 0 or self._sock is None:
            return True
        if not _HAS_OUTQ:
            return False  # a write will notice
        try:
            return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
        except OSError:
            return True

    def close(self) -> None:
        """Drop the connection, with what has not been sent."""
        self._transport.abort()

    def lost(self) -> None:
        """The connection is gone."""
        self._fd = -1
        self._is_lost = True
        if self._on_lost is not None:
            self._on_lost()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back once the connection is gone; at once when that has happened before anyone asked."""
        self._on_lost = callback
        if self._is_lost:
            callback()

    def _settle(self) -> None:
        self._fresh = 0


class _Unframed(RequestResponseCycle):
    """For HTTP/1.0, which has no chunks: what has no length ends with its connection (RFC 9112 6.3)."""

    async def send(self, message: Any) -> None:
        """See `RequestResponseCycle.send`."""
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
                self.expected_content_length = _TO_THE_END
        elif (
            message["type"] == "http.response.body"
            and self.expected_content_length > _TO_THE_END // 2
            and not message.get("more_body", False)
        ):
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class RelayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with the client's socket in each request's scope."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Bound the transport's buffer; uvicorn's own responses wait for it by `drain`."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH)
        self._client_socket = ClientSocket(transport)
        self._look_timer: asyncio.TimerHandle | None = None
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader, if there is one: it does not wait in `receive`."""
        super().connection_lost(exc)
        self._head_timer.cancel()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._client_socket.lost()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. It may read on: what it has asked for is answered to its end.

        A client that has closed altogether looks the same, until something is sent to it: then its kernel
        answers with a reset. So a stream says something at once, and the connection is looked at for it.
        Where the answer has not begun after a while, that is an interim one (RFC 9110 section 15.2.1).
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.scheme == "https":
            return False
        cycle.keep_alive = False  # nothing more can be asked here
        if cycle.response_started and self._client_socket.written > self._written_before:
            self._client_socket.write(sse.KEEPALIVE)
        self._has_asked = False
        self._look_after(_LOOK_FIRST_S)
        return True

    def _look_after(self, wait_s: float) -> None:
        self._look_timer = self.loop.call_later(wait_s, self._look, min(2 * wait_s, _LOOK_LAST_S))

    def _look(self, next_s: float) -> None:
        if self._client_socket.is_reset:
            self._client_socket.close()
            return
        has_begun = self.cycle is None or self.cycle.response_started
        if (
            next_s == _LOOK_LAST_S
            and not (has_begun or self._has_asked)
            and self.scope["http_version"] == "1.1"
        ):
            self._has_asked = True
            self.transport.write(_CONTINUE)
        self._look_after(next_s)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that is not whole after HEAD_MAX_BYTES is answered 431 and ended."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
                message = f"the headers are over {HEAD_MAX_BYTES} bytes"
                self.transport.write(_refusal("431 Request Header Fields Too Large", "too_large", message))
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Tell what cannot be read as HTTP; never into an answer that is under way."""
        cycle = self.cycle
        if not self.pipeline and (cycle is None or cycle.response_complete or not cycle.response_started):
            self.transport.write(_refusal("400 Bad Request", "malformed_request", msg))
        self.transport.close()

    def on_message_begin(self) -> None:
        """Each request of the connection sees the same socket."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: self._client_socket}
        self._written_before = self._client_socket.written
        self._head_timer.cancel()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """The head is whole: its bounds are behind it."""
        self._in_head = False
        self._head_timer.cancel()
        is_first = self.cycle is None
        super().on_headers_complete()
        if is_first and self.scope["http_version"] == "1.0":  # after it the connection ends in any case
            self._client_socket.is_chunked = False
            self.cycle.__class__ = _Unframed

    def _begin_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self._head_is_late)

    def _head_is_late(self) -> None:
        # Whoever connects and says nothing, or a byte now and then, holds no connection for ever.
        if self._in_head:
            self.transport.close()


def listen(host: str, port: int, settings: Settings) -> socket.socket:
    """A listening socket whose accepted sockets show slow clients soon. Raises SettingsInvalid."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(listener, settings)
        listener.bind((host.strip("[]"), port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsInvalid(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    listener.setblocking(False)
    return listener


def _tune(listener: socket.socket, settings: Settings) -> None:
    # A name is missing in Python or refused by the kernel only outside Linux; `relay doctor` says so.
    wanted = {
        "TCP_NOTSENT_LOWAT": settings.notsent_lowat_bytes,
        "TCP_USER_TIMEOUT": int(settings.user_timeout_s * 1000),
        "TCP_NODELAY": 1,
    }
    for name, value in wanted.items():
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
    if settings.tcp_maxseg is not None:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, settings.tcp_maxseg)
