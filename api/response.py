"""The SSE response: our own ASGI callable around a consumer.

Starlette's StreamingResponse pulls from a generator; here the consumer pushes, within its credit, and
this only opens, waits for the end and closes. uvicorn sends the head and the last chunk; the chunks
between go to the client's socket directly.
"""

import asyncio
import random
from collections.abc import Iterable
from contextlib import suppress

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import sse
from api.ending import Ending
from api.node import Node
from api.stream import Consumer
from relay import tracing
from relay.errors import OutOfMemory, RelayError, StreamLost, Unavailable
from relay.scripts import Attached

log = structlog.get_logger("relay.api")

AGAIN_S = 1.0  # between two attaches of a reader while Redis is away; each waits for a connection itself

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),  # no-transform: nothing may gzip, and so hold, frames
    (b"x-accel-buffering", b"no"),  # nginx
)


class EventStream(Response):
    """One reader's connection, from the head to the last chunk.

    A Response so that FastAPI passes it on; nothing of Starlette's sending is used.
    """

    def __init__(
        self,
        node: Node,
        consumer: Consumer,
        attached: Attached,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(status_code=200)
        self.consumer = consumer
        self._node = node
        self._attached = attached
        self._more = tuple(headers)

    def opened(self) -> None:
        """The head is out: for those who add to it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 ASGI's form
        """Serve it. The consumer is detached however this ends."""
        try:
            name = (b"relay-consumer", self.consumer.name.encode())
            headers = [*HEADERS, name, *self._more]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            self.consumer.outlet.socket.write(sse.OPENING)
            self.opened()
            ending = await follow(self._node, self.consumer, self._attached)
        finally:
            self._node.detach(self.consumer)  # where the head could not be sent
        if ending is not Ending.DISCONNECTED:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def follow(node: Node, consumer: Consumer, attached: Attached) -> Ending:
    """Serve until the end; attach again where Redis has lost the consumer and not the response.

    The consumer that was the last is detached, however this ends.
    """
    if not tracing.is_on():
        return await _follow(node, consumer, attached)
    journal = consumer.journal
    try:
        context = await journal.wire.call("HGET", journal.keys.meta, tracing.TRACEPARENT)
    except RelayError:
        context = None  # Redis is away: the reader comes before its trace
    except BaseException:
        node.detach(consumer)
        raise
    with tracing.delivery(journal.id, consumer.name, (context or b"").decode()) as span:
        ending = await _follow(node, consumer, attached)
        if span is not None:
            # Of the first connection to Redis: a reader attached again has another ledger.
            told: dict[str, str | int] = {
                "relay.ending": ending.name.lower(),
                "relay.confirmed": consumer.ledger.confirmed,
            }
            span.set_attributes(told)
        return ending


async def _follow(node: Node, consumer: Consumer, attached: Attached) -> Ending:
    try:
        while True:
            if not consumer.begun and not consumer.ended.done():
                consumer.begin(attached)
            elif consumer.last_word:  # drained or superseded between the attach and here
                consumer.outlet.socket.write(consumer.last_word)
            ending = await consumer.ended
            if ending is not Ending.LOST:
                return ending
            try:
                again = await _attached_again(node, consumer)
            except RelayError as error:
                log.warning("stream_lost", response=consumer.journal.id, error=error.message)
                lost = StreamLost("the response is gone from Redis")
                data = {"code": lost.code, "message": lost.message, "retryable": lost.retryable}
                consumer.say(consumer.outlet.form.private("error", data))
                return ending
            if again is None:
                return Ending.DRAINED if node.draining else Ending.DISCONNECTED
            consumer, attached = again
    finally:
        node.detach(consumer)


async def _attached_again(node: Node, lost: Consumer) -> tuple[Consumer, Attached] | None:
    """Attach anew. While Redis is only away nobody is told that anything is gone: the reader waits.

    For as long as its client does, or until the node drains: then None. Raises StreamLost.
    """
    while not node.draining:
        try:
            return await node.reattach(lost)
        except (Unavailable, OutOfMemory) as error:
            log.debug("attach_waits", response=lost.journal.id, error=error.message)
        lost.say(sse.KEEPALIVE)
        hung_up = asyncio.Event()
        lost.outlet.socket.on_lost(hung_up.set)
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S * random.uniform(0.5, 1.0)):
                await hung_up.wait()
        if hung_up.is_set():
            return None
    return None
