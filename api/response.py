"""The SSE response: our own ASGI callable around a consumer.

Starlette's StreamingResponse pulls from a generator; here the consumer pushes, within its credit, and
this only opens, waits for the end and closes. uvicorn sends the head and the last chunk; the chunks
between go to the client's socket directly.
"""

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import sse
from api.ending import Ending
from api.node import Node
from api.stream import Consumer
from relay.errors import RelayError, StreamLost
from relay.scripts import Attached

log = structlog.get_logger("relay.api")

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),  # no-transform: nothing may gzip, and so hold, frames
    (b"x-accel-buffering", b"no"),  # nginx
)


class EventStream(Response):
    """One reader's connection, from the head to the last chunk.

    A Response so that FastAPI passes it on; nothing of Starlette's sending is used.
    """

    def __init__(self, node: Node, consumer: Consumer, attached: Attached) -> None:
        super().__init__(status_code=200)
        self._node = node
        self._consumer = consumer
        self._attached = attached

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 ASGI's form
        """Serve it. The consumer is detached however this ends."""
        try:
            name = (b"relay-consumer", self._consumer.name.encode())
            await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, name]})
            self._consumer.outlet.socket.write(sse.OPENING)
            ending = await self._follow()
        finally:
            self._node.detach(self._consumer)
        if ending is not Ending.DISCONNECTED:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self) -> Ending:
        """Serve until the end; attach again where Redis has lost the consumer and not the response."""
        attached = self._attached
        while True:
            before = self._consumer
            if not before.ended.done():
                before.begin(attached)
            elif before.last_word:  # drained or superseded between the attach and here
                before.outlet.socket.write(before.last_word)
            ending = await before.ended
            if ending is not Ending.LOST:
                return ending
            try:
                self._consumer, attached = await self._node.reattach(before)
            except RelayError as error:
                log.warning("stream_lost", response=before.journal.id, error=error.message)
                lost = StreamLost("the response is gone from Redis")
                data = {"code": lost.code, "message": lost.message, "retryable": lost.retryable}
                before.outlet.socket.write(sse.private("error", data))
                return ending
