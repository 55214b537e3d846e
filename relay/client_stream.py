"""One reader of one response: a stream of typed events over as many connections as it takes."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from relay.client_events import Disconnected, Done, Event, Failed, Ledger, Reconnect, Rewind, typed
from relay.errors import Draining, Expired, NotFound, RelayError, Unavailable
from relay.position import START, Position
from relay.sse import Event as SseEvent
from relay.sse import Parser

if TYPE_CHECKING:
    from relay.client import Client

_LONGEST_WAIT_S = 30.0  # of one pause between two attempts, whatever Retry-After says
_NO_CONTENT = 204
# What is owed is confirmed so often, whatever the window: a reader is slow by the age of what it lacks.
_CONFIRM_EVERY_S = 0.4


class Stream:
    """One reader of one response: an async context manager and an async iterator of typed events.

    It ends after `Done` or `Failed`, or at once when the response was already read to its end. Raises
    Disconnected after too many attempts without an event, OutOfOrder or DigestMismatch when the relay
    broke its promise, and the relay's own refusals (NotFound, Expired, Unauthorized ...).
    """

    def __init__(
        self, client: "Client", response_id: str, path: str, after: Position, params: dict[str, str]
    ) -> None:
        self.response_id = response_id
        self.connections = 0
        self._client = client
        self._path = path
        self._params = params
        self._ledger = Ledger(after)
        self._acked = after.offset
        self._confirm_at = 0.0  # loop time of the next confirmation, if anything is owed
        self._is_confirming = False
        self._answer: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._parser = Parser()
        self._events: deque[SseEvent] = deque()  # of one read; the next read waits until it is empty
        self._attempts = 0
        self._wait_s = 0.0  # what the relay asked us to wait before the next attempt
        self._broken: RelayError | None = None  # why the next attempt needs a new connection
        self._ended = False

    @property
    def position(self) -> Position:
        """Up to where events have been handed to the caller."""
        return self._ledger.position

    @property
    def consumer(self) -> str | None:
        """This reader's name at the relay, once connected."""
        return self._params.get("consumer")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; the socket is read only for want of one. May be cancelled: nothing is lost."""
        while True:
            if self._events:
                if self._owes and asyncio.get_running_loop().time() >= self._confirm_at:
                    await self._confirm_early()
                if (event := self._take(self._events.popleft())) is not None:
                    return event
                continue
            if self._ended:
                await self._disconnect()
                raise StopAsyncIteration
            try:
                if self._broken is not None:
                    raise self._broken
                await self._confirm()
                await self._read()
            except httpx.TransportError as error:
                await self._back_off(error)
            except RelayError as error:
                if not error.retryable:
                    raise
                await self._back_off(error)

    def _take(self, sse: SseEvent) -> Event | None:
        """One parsed event, checked against the order, and what it means for the connection."""
        before = self.position.offset
        try:
            event = typed(sse, self._ledger)
        except RelayError:
            self._end()
            raise
        if self.position.offset > before:
            self._attempts = 0
        if isinstance(event, Done | Failed):
            self._end()
        elif isinstance(event, Reconnect):
            self._break(Draining("the node goes away", retry_after_s=event.retry_ms / 1000))
        elif isinstance(event, Rewind):
            self._acked = min(self._acked, event.position.offset)
            if not event.exact:
                self._break(Unavailable(f"text was lost, going back to {event.position}"))
        return event

    def _end(self) -> None:
        self._ended = True
        self._events.clear()

    def _break(self, error: RelayError) -> None:
        """Leave this connection when the caller next asks: what it is to see now must reach it first."""
        self._broken = error
        self._events.clear()

    async def _read(self) -> None:
        """Connect if need be, then parse what one read of the socket brings."""
        chunks = self._chunks or await self._connect()
        if self._ended:
            return
        chunk = await (self._read_and_confirm(chunks) if self._owes else anext(chunks, None))
        if chunk is None:
            raise httpx.RemoteProtocolError("the connection ended before the response did")
        self._events.extend(self._parser.feed(chunk))

    async def _read_and_confirm(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """One read of the socket; should it take long, what is owed is confirmed meanwhile."""
        chunk: bytes | None = None
        failed: httpx.TransportError | None = None
        async with asyncio.TaskGroup() as tasks:
            later = tasks.create_task(self._confirm_later())
            try:
                chunk = await anext(chunks, None)
            except httpx.TransportError as error:  # as itself, and not as a group
                failed = error
            if not self._is_confirming:  # a call that is under way is let end: cut, it costs a connection
                later.cancel()
        if failed is not None:
            raise failed
        return chunk

    async def _connect(self) -> AsyncIterator[bytes]:
        if self._wait_s:
            wait_s, self._wait_s = self._wait_s, 0.0
            await asyncio.sleep(min(wait_s, _LONGEST_WAIT_S))
        last_id = None if self.position == START else str(self.position)
        answer = await self._client.connect(self._path, self._params, last_id)
        self.connections += 1
        self._acked = self.position.offset  # what it goes on from counts as confirmed
        self._answer, self._chunks, self._parser = answer, answer.aiter_raw(), Parser()
        self._ended = answer.status_code == _NO_CONTENT
        # The name must stay ours: a new one with every cut would leave consumers behind that nobody is.
        if name := answer.headers.get("relay-consumer"):
            self._params["consumer"] = name
        # A name that the relay knows goes on where it was: what came before is not ours to verify.
        if last_id is None and (begins := answer.headers.get("relay-position")):
            self._ledger.begin_at(Position.parse(begins))
            self._acked = self.position.offset
        return self._chunks

    async def _disconnect(self) -> None:
        self._events.clear()
        chunks, self._chunks = self._chunks, None
        answer, self._answer = self._answer, None
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
        if answer is not None:
            await answer.aclose()

    async def _back_off(self, error: httpx.TransportError | RelayError) -> None:
        """Wait before the next attempt, or give up when there were too many without an event."""
        self._broken = None
        await self._disconnect()
        self._attempts += 1
        if self._attempts > self._client.retries:
            reason = str(error) or type(error).__name__
            raise Disconnected(f"gave up after {self._client.retries} attempts: {reason}") from error
        pause_s = self._client.backoff_s * 2 ** (self._attempts - 1)
        asked_s = error.retry_after_s or 0.0 if isinstance(error, RelayError) else 0.0
        jitter = random.uniform(0.5, 1.0)
        self._wait_s = max(pause_s * jitter, asked_s)

    @property
    def _owes(self) -> bool:
        """Whether the relay waits for an explicit ack of something that the caller has dealt with."""
        return "window" in self._params and self.consumer is not None and self.position.offset > self._acked

    async def _confirm(self) -> None:
        """Confirm what the caller has dealt with, once it is half the window or old: no chatter."""
        offset = self.position.offset
        loop = asyncio.get_running_loop()
        if not self._owes or self.consumer is None:
            return
        is_much = (offset - self._acked) * 2 >= int(self._params["window"])
        if not is_much and loop.time() < self._confirm_at:
            return
        self._is_confirming = True
        try:
            await self._client.ack(self.response_id, self.consumer, offset, self._params.get("token"))
        except RelayError as error:
            # A reader that has just ended is not there to be confirmed; the connection tells what that means.
            if not error.retryable and not isinstance(error, NotFound | Expired):
                raise
        else:
            self._acked = offset
        finally:
            self._is_confirming = False
            self._confirm_at = loop.time() + _CONFIRM_EVERY_S

    async def _confirm_early(self) -> None:
        """Confirm beside the reading; a refusal is the caller's with its next read."""
        try:
            await self._confirm()
        except RelayError as error:
            self._broken = error

    async def _confirm_later(self) -> None:
        await asyncio.sleep(self._confirm_at - asyncio.get_running_loop().time())
        await self._confirm_early()
