"""Many responses on one connection: browsers open six to a host, and a page may show more answers than that.

Each response is a consumer like any other, with a position, a credit and an end of its own, whose sink is a
lane of the connection (`api.lane`). The connection ends when all are over, or stays open for more with
`keep`. Responses join and leave while it is open, by a call that any node takes: it goes over a channel in
Redis whose name only the connection's owner can make.
"""

import asyncio
import contextvars
import hashlib
import random
from typing import Any

import orjson
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import sse
from api.ending import Ending
from api.lane import Board, Lane, Tagged
from api.node import RECONNECT_MS
from api.opening import holds
from api.response import HEADERS, follow
from api.sink import Sink
from api.state import State
from relay.errors import RelayError
from relay.journal import Journal
from relay.lifecycle import TERMINAL
from relay.position import Position

log = structlog.get_logger("relay.api")

STREAMS_MAX = 32  # responses of one connection, at once
SHARE = 4  # of the credit of a connection of its own, for each: a reader that has gone leaves less in buffers
LOOK_S = 1.0  # between two looks at whether to say that it is alive, or that the node goes away


def channel(connection: str, owner: str | None) -> str:
    """Where a connection hears of what joins and leaves it; another owner's guess is another channel."""
    of = hashlib.sha256((owner or "").encode()).hexdigest()[:16]
    return f"relay:{{{connection}}}:{of}"


class Many(Response):
    """A connection, from its head to its last chunk."""

    def __init__(
        self,
        state: State,
        sink: Sink,
        *,
        connection: str,
        owner: str | None,
        consumer: str | None,
        window: int | None,
        keep: bool,
        board: Board,
    ) -> None:
        super().__init__(status_code=200)
        self.connection = connection
        self.consumer = consumer
        self._state = state
        self._node = state.node
        self._sink = sink
        self._channel = channel(connection, owner)
        self._window = window
        self._keep = keep
        self._board = board
        self._lanes: dict[str, Lane] = {}
        self._changed = asyncio.Event()
        self._is_lost = False
        self._group: asyncio.TaskGroup | None = None
        self._context = contextvars.copy_context()
        self._seen, self._seen_at = 0, self._node.loop.time()

    def join(self, name: str, position: Position | None, error: RelayError | None = None) -> bool:
        """Make room for a response, or tell why not; False when it is here already, or there is no room."""
        if name in self._lanes or len(self._lanes) >= STREAMS_MAX:
            return False
        lane = Lane(self._sink, name, Tagged(self._board, name), position, error)
        self._lanes[name] = lane
        if position is not None:
            self._board.move(name, str(position).encode())
        if self._group is not None:
            # In the connection's context, not in that of whoever rang: its span is the current one there.
            self._group.create_task(self._serve(lane), context=self._context.copy())
        return True

    def leave(self, name: str) -> bool:
        """Let go of a response; False when it is not here."""
        lane = self._lanes.get(name)
        if lane is None:
            return False
        self._board.leave(name, removed=True)
        lane.lose()
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 ASGI's form
        """Serve it. Every consumer is detached however this ends."""
        wire = self._state.topology.wire(self._channel)
        wire.subscribe(self._channel, self._hear)
        try:
            name = (b"relay-connection", self.connection.encode())
            await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, name]})
            self._sink.write(sse.OPENING)
            self._say("connection", {"connection": self.connection, "streams": list(self._lanes)})
            self._sink.on_lost(self._lost)
            async with asyncio.TaskGroup() as self._group:
                for lane in tuple(self._lanes.values()):
                    self._group.create_task(self._serve(lane))
                try:
                    await self._until_over()
                finally:
                    wire.unsubscribe(self._channel)
                    self._let_go()
        finally:
            wire.unsubscribe(self._channel)
        if not self._is_lost:
            if self._node.draining:
                self._sink.write(sse.reconnect(random.randint(*RECONNECT_MS)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_over(self) -> None:
        """Until nothing is left to say, the client has gone, or the node goes away."""
        while not self._is_lost and (self._lanes or (self._keep and not self._node.draining)):
            self._changed.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                self._keep_alive()

    def _keep_alive(self) -> None:
        now = self._node.loop.time()
        if self._sink.written != self._seen:
            self._seen, self._seen_at = self._sink.written, now
        elif now - self._seen_at >= self._state.settings.keepalive_s and not self._sink.outstanding():
            self._sink.write(sse.KEEPALIVE)

    async def _serve(self, lane: Lane) -> None:
        """One response, to its end on this connection. What is wrong with it is told, and holds no other."""
        ending = None
        try:
            ending = await self._follow(lane)
        except RelayError as error:
            if not self._node.draining:  # else the connection says so, once
                data = {"code": error.code, "message": error.message, "retryable": error.retryable}
                lane.write(lane.form.private("error", data))
        finally:
            del self._lanes[lane.name]
            if not self._node.draining:
                self._board.leave(lane.name, removed=lane.is_lost)
            self._changed.set()
        if ending is Ending.DISCONNECTED and not self._is_lost:
            self._say("removed", {"stream": lane.name})

    async def _follow(self, lane: Lane) -> Ending:
        journal: Journal = self._state.topology.journal(lane.name)
        if lane.error is not None:
            raise lane.error
        if lane.position is not None:
            snapshot = await journal.snapshot()
            is_true = await holds(journal, snapshot, lane.position, self._state)
            if is_true and lane.position.offset >= snapshot.head and snapshot.status in TERMINAL:
                self._state.metrics.resumes["done"] += 1
                return Ending.TERMINAL
        consumer, attached = await self._node.attach(
            journal,
            lane,
            name=self.consumer,
            position=lane.position,
            window=self._window,
            form=lane.form,
            share=SHARE,
        )
        if attached.status in TERMINAL and attached.offset >= attached.head:
            self._node.detach(consumer)
            return Ending.TERMINAL
        if lane.position is not None:
            self._state.metrics.resumes["log" if attached.offset == attached.head else "journal"] += 1
        begins = f"{attached.offset}-{attached.epoch}"
        try:
            self._say("joined", {"stream": lane.name, "consumer": consumer.name, "position": begins})
        except BaseException:
            self._node.detach(consumer)
            raise
        return await follow(self._node, consumer, attached)

    def _hear(self, message: bytes) -> None:
        """What a node was told about this connection: of responses that its caller may open."""
        told: dict[str, Any] = orjson.loads(message)
        for name in told["remove"]:
            self.leave(name)
        for name, position in told["add"]:
            if not self.join(name, Position.parse(position) if position else None):
                why = "it is here already" if name in self._lanes else f"at most {STREAMS_MAX} at once"
                self._say("refused", {"stream": name, "message": why})

    def _say(self, name: str, data: dict[str, Any]) -> None:
        if not self._is_lost:
            self._sink.write(sse.private(name, data))

    def _lost(self) -> None:
        self._is_lost = True
        self._let_go()
        self._changed.set()

    def _let_go(self) -> None:
        for lane in tuple(self._lanes.values()):
            lane.lose()
