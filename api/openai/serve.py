"""A response served in the OpenAI form: as a stream of chunks, or whole.

Both are consumers like any other, with credit and a position, so that a slow client slows its generation and
one that has gone ends it after `abandon_after_s`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.responses import Response

from api.ending import Ending
from api.form import Form
from api.node import Node
from api.openai import errors
from api.response import HEADERS, EventStream, follow
from api.sink import Framing, Held, Nowhere, Sink
from relay.errors import Draining, StreamLost
from relay.events import Channel, Placed, Record
from relay.journal import Journal
from relay.lifecycle import TERMINAL
from relay.position import Position

# Whether it is a stream or an error is known with the first record that says something. A client waits so
# long for its headers; after that an error comes in the stream.
HEADERS_WITHIN_S = 30.0


class _Listening:
    """A form that tells what the first record was that says something."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self.private = form.private
        self.first: asyncio.Future[Record] = asyncio.get_running_loop().create_future()

    def frame(self, record: Record, end: int, epoch: int) -> bytes:
        """As the form has it."""
        if not self.first.done() and record.channel not in (Channel.START, Channel.NOTICE):
            self.first.set_result(record)
        return self._form.frame(record, end, epoch)


class _Unseen:
    """The form of what is read to its end before it is answered: it only counts."""

    @staticmethod
    def frame(record: Record, end: int, epoch: int) -> bytes:  # noqa: ARG004 the form's shape
        """One byte, so that there is something to acknowledge."""
        return b"."

    @staticmethod
    def private(name: str, data: dict[str, Any]) -> bytes:  # noqa: ARG004 the form's shape
        """Whatever happens on the way, the answer is made of what stands at the end."""
        return b""


class _Released(EventStream):
    """An event stream that was begun already, and held back."""

    def opened(self) -> None:
        """The head is out."""
        sink = self.consumer.outlet.socket
        if isinstance(sink, Held):
            sink.release()


async def stream(
    node: Node, journal: Journal, sink: Framing, form: Form, position: Position | None = None
) -> Response:
    """A response as a stream; as an error where it fails before it says anything; empty past its end."""
    listening = _Listening(form)
    consumer, attached = await node.attach(
        journal, Held(sink), name=None, position=position, window=None, form=listening
    )
    about = [(b"relay-stream", journal.id.encode())]
    if attached.status in TERMINAL and attached.offset >= attached.head:
        node.detach(consumer)
        return Response(headers={name.decode(): value.decode() for name, value in (*HEADERS, *about)})
    try:
        consumer.begin(attached)
        await asyncio.wait(
            (listening.first, consumer.ended),
            timeout=0 if attached.offset else HEADERS_WITHIN_S,  # who resumes has been told something
            return_when=asyncio.FIRST_COMPLETED,
        )
        if listening.first.done() and (first := listening.first.result()).channel is Channel.ERROR:
            node.detach(consumer)
            return errors.failed(journal.id, orjson.loads(first.payload))
    except BaseException:
        node.detach(consumer)
        raise
    return _Released(node, consumer, attached, about)


async def ended(node: Node, journal: Journal, sink: Sink) -> None:
    """Read a response to its end, for a client that waits for the whole. Raises Draining, StreamLost."""
    consumer, attached = await node.attach(
        journal, Nowhere(sink), name=None, position=None, window=None, form=_Unseen()
    )
    ending = await follow(node, consumer, attached)
    if ending is Ending.DRAINED:
        raise Draining(f"the node goes away; the answer will be at /v1/streams/{journal.id}/text")
    if ending is not Ending.TERMINAL:  # for nobody, if the client has gone
        raise StreamLost("the response is gone from Redis")


async def records(journal: Journal, stop: int) -> AsyncIterator[Placed]:
    """The records up to an offset."""
    async for placed in journal.read(0, stop):
        for item in placed:
            yield item
