"""One RESP3 connection: commands of one turn of the loop leave in one write, replies resolve in order.

hiredis packs and parses. A link lives once: when it breaks, everything in flight fails with
ConnectionLost, and `relay.wire` makes another.
RESP3: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from relay.errors import (
    ConnectionLost,
    OutOfMemory,
    Redirected,
    Refused,
    RelayError,
    SettingsInvalid,
    Unavailable,
)

Argument = str | bytes | int | float
Reply = asyncio.Future[Any]

_MORE = object()
_BUSY = frozenset(
    ("LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "READONLY", "BUSY", "NOREPLICAS", "MISCONF")
)


def pack(*args: Argument) -> bytes:
    """A command as RESP."""
    packed: bytes = hiredis.pack_command(cast("Any", args))
    return packed


class Link(asyncio.Protocol):
    """The protocol of one connection.

    At most `max_inflight` commands are unanswered; past that commands wait in line, at most as many
    again; past that `send` raises Unavailable. Subscriptions always find room in the line: there are no
    more of them than of readers, and one left out would stay deaf. `on_push` gets (channel, payload) of
    each message, `on_deaf` a channel whose subscription was refused or ended by the server, `on_redirect`
    what a cluster says of a slot, before the command that it answers fails. A server that answers
    READONLY is no primary any more: the connection is dropped, for the next one may find the new primary.
    """

    def __init__(  # noqa: PLR0917 the callbacks are its interface, and one owner makes it
        self,
        shown: str,
        max_inflight: int,
        on_push: Callable[[str, bytes], None],
        on_lost: Callable[["Link"], None],
        on_deaf: Callable[[str], None] = lambda _channel: None,
        on_redirect: Callable[[Redirected], None] = lambda _redirected: None,
    ) -> None:
        self._shown = shown
        self._max_inflight = max_inflight
        self._on_push = on_push
        self._on_lost = on_lost
        self._on_deaf = on_deaf
        self._on_redirect = on_redirect
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._buffer: list[bytes] = []
        # A waiter is a future, or "KIND CHANNEL" of an (un)subscription, confirmed by a push in its place.
        self._pending: deque[Reply | str] = deque()
        self._waiting: deque[tuple[bytes, Reply | str]] = deque()
        self._gone = asyncio.Event()
        self._write_paused = False
        self._flush_due = False
        self._owed_since = 0.0  # loop time since when a reply has been owed without one coming

    def send(self, args: tuple[Argument, ...]) -> Reply:
        """Queue a command for this turn's write. Raises Unavailable when the line is full or broken."""
        future: Reply = self._loop.create_future()
        self._enqueue(pack(*args), future)
        return future

    def send_packed(self, packed: bytes) -> Reply:
        """The same for a command that its caller has packed, once for many sends or in parts."""
        future: Reply = self._loop.create_future()
        self._enqueue(packed, future)
        return future

    def send_subscription(self, command: str, channel: str) -> None:
        """SSUBSCRIBE or SUNSUBSCRIBE: confirmed by a push, not by a reply."""
        self._enqueue(pack(command, channel), f"{command.lower()} {channel}")

    @property
    def inflight(self) -> int:
        """Commands without a reply, waiting ones included."""
        return len(self._pending) + len(self._waiting)

    @property
    def is_open(self) -> bool:
        """Whether the socket is there."""
        return self._transport is not None

    def silent_s(self) -> float:
        """For how long a reply has been owed without any data coming; 0 when none is."""
        return self._loop.time() - self._owed_since if self._pending else 0.0

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self, within_s: float) -> None:
        """Write what is queued, then close, at the latest after `within_s`.

        What is in flight fails with ConnectionLost.
        """
        if self._transport is None:
            return
        self._flush()
        self._transport.close()
        try:
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        except TimeoutError:
            self.abort()
            await self._gone.wait()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Everything in flight has an unknown outcome: say so, in order."""
        self._transport = None
        reason = f": {exc}" if exc else ""
        error = ConnectionLost(f"lost the connection to Redis at {self._shown}{reason}")
        waiters = [*self._pending, *(waiter for _, waiter in self._waiting)]
        self._pending.clear()
        self._waiting.clear()
        self._buffer.clear()
        for waiter in waiters:
            if not isinstance(waiter, str) and not waiter.done():
                _fail(waiter, error)
        self._gone.set()
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Parse, and resolve in order."""
        self._owed_since = self._loop.time()
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not _MORE:
                if type(reply) is hiredis.PushNotification:
                    self._pushed(reply)
                else:
                    waiter = pending.popleft()
                    if type(reply) is hiredis.ReplyError:
                        self._refused(waiter, _typed(str(reply)))
                    elif not isinstance(waiter, str) and not waiter.done():
                        waiter.set_result(reply)
                reply = reader.gets()
        except (hiredis.ProtocolError, IndexError):
            self.abort()  # out of step with the server: nothing that follows can be trusted
            return
        while self._waiting and len(pending) < self._max_inflight:
            self._put(*self._waiting.popleft())

    def pause_writing(self) -> None:
        """The socket is full: packed commands gather here, at most `max_inflight` of them."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """And leave in one write."""
        self._write_paused = False
        self._flush()

    # --- inside

    def _pushed(self, push: list[bytes]) -> None:
        kind = push[0]
        if kind == b"smessage":
            self._on_push(push[1].decode(), push[2])
        elif kind in (b"ssubscribe", b"sunsubscribe"):
            # A server may end a subscription by itself (the slot moved): then it is not at the head.
            channel = push[1].decode()
            if self._pending and self._pending[0] == f"{kind.decode()} {channel}":
                self._pending.popleft()
            if kind == b"sunsubscribe":
                self._on_deaf(channel)

    def _refused(self, waiter: Reply | str, error: RelayError) -> None:
        if isinstance(error, Redirected):
            self._on_redirect(error)
        elif isinstance(error, Unavailable) and error.message.startswith("READONLY"):
            self.abort()
        if isinstance(waiter, str):  # answered in order, and by no push
            kind, _, channel = waiter.partition(" ")
            if kind == "ssubscribe":
                self._on_deaf(channel)
        elif not waiter.done():
            _fail(waiter, error)

    def _enqueue(self, packed: bytes, waiter: Reply | str) -> None:
        if self._transport is None:
            raise Unavailable(f"no connection to Redis at {self._shown}")
        # A listener may send in the middle of the replies: it must not overtake those in line.
        if self._waiting or len(self._pending) >= self._max_inflight:
            if len(self._waiting) >= self._max_inflight and not isinstance(waiter, str):
                raise Unavailable(f"{self.inflight} commands wait for Redis at {self._shown}")
            self._waiting.append((packed, waiter))
        else:
            self._put(packed, waiter)

    def _put(self, packed: bytes, waiter: Reply | str) -> None:
        if not self._pending:
            self._owed_since = self._loop.time()
        self._pending.append(waiter)
        self._buffer.append(packed)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._buffer and not self._write_paused and self._transport is not None:
            self._transport.write(b"".join(self._buffer))
            self._buffer.clear()


def _fail(waiter: Reply, error: RelayError) -> None:
    """Whoever waits hears of it; a reply that its caller gave up on is not logged as never read."""
    waiter.set_exception(error)
    waiter.exception()


def _typed(message: str) -> RelayError:
    prefix = message.partition(" ")[0]
    if prefix == "OOM":
        return OutOfMemory(message)
    if prefix in _BUSY:
        return Unavailable(message)
    if prefix in ("MOVED", "ASK"):
        return Redirected.said(message)
    if prefix in ("WRONGPASS", "NOAUTH"):
        return SettingsInvalid(f"RELAY_REDIS_URL: Redis refuses the credentials: {message}")
    return Refused(message)
