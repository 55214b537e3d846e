"""What an API node holds: its consumers and their bells."""

import asyncio
import random
import secrets

import structlog

from api.ending import Ending
from api.feed import Feed
from api.form import NATIVE, Form
from api.ledger import Credit
from api.metrics import Metrics
from api.sink import Sink
from api.stream import Consumer
from relay.cluster import Affects
from relay.errors import Draining, Overloaded
from relay.journal import Journal
from relay.keys import keys_of
from relay.lifecycle import TERMINAL
from relay.position import Position
from relay.scripts import Attached
from relay.settings import Settings
from relay.topology import Topology

log = structlog.get_logger("relay.api")

CATCH_UP_TRIES, CATCH_UP_INTERVAL_S = 10, 0.2
RECONNECT_MS = (250, 2000)  # spread of the reconnects after a drain


class Node:
    """The consumers of this process. One per API node."""

    def __init__(self, settings: Settings, topology: Topology, metrics: Metrics) -> None:
        self.settings = settings
        self.topology = topology
        self.metrics = metrics
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self._responses: dict[str, Feed] = {}
        self._emptied = asyncio.Event()
        topology.on_change(self._recover)

    @property
    def consumers(self) -> list[Consumer]:
        """All of them, now."""
        return [consumer for feed in self._responses.values() for consumer in feed.members]

    @property
    def feeds(self) -> list[Feed]:
        """Of each response that has a consumer here, now."""
        return list(self._responses.values())

    async def attach(
        self,
        journal: Journal,
        socket: Sink,
        *,
        name: str | None,
        position: Position | None,
        window: int | None,
        form: Form = NATIVE,
        share: int = 1,
    ) -> tuple[Consumer, Attached]:
        """Make a consumer and attach it; `begin` starts it. Detach it whatever happens after.

        `share`: it has this part of the credit, for the connection is not its alone.

        Raises Draining, Overloaded, StreamLost or Unavailable.
        """
        if self.draining:
            raise Draining("this node is going away: ask another", retry_after_s=random.uniform(0, 1))
        if sum(len(feed.members) for feed in self._responses.values()) >= self.settings.max_consumers:
            self.metrics.shed["consumers"] += 1
            raise Overloaded(
                "this node serves as many consumers as it may", retry_after_s=random.uniform(1, 5)
            )
        consumer = Consumer(
            self,
            journal,
            name=name or f"c-{secrets.token_hex(6)}",
            connection=secrets.token_hex(6),
            socket=socket,
            credit=Credit(
                window or max(self.settings.credit_bytes // share, 1024),
                max(self.settings.credit_entries // share, 1),
                explicit=window is not None,
            ),
            keep=name is not None,
            form=form,
        )
        return consumer, await self._attach(consumer, position)

    async def reattach(self, lost: Consumer) -> tuple[Consumer, Attached]:
        """A new consumer for a connection whose group is gone, from what was written to its socket.

        Raises StreamLost when the response itself is gone, or Unavailable.
        """
        self.detach(lost)
        consumer = Consumer(
            self,
            lost.journal,
            name=lost.name,
            connection=secrets.token_hex(6),
            socket=lost.outlet.socket,
            credit=lost.outlet.credit,
            keep=lost.keep,
            form=lost.outlet.form,
        )
        return consumer, await self._attach(consumer, Position(lost.ledger.sent, lost.outlet.epoch))

    async def _attach(self, consumer: Consumer, position: Position | None) -> Attached:
        journal = consumer.journal
        # The bell first: nothing can be appended between the attach and the first ring.
        self._listen(consumer)
        try:
            return await journal.attach(
                consumer.name,
                consumer.connection,
                position,
                limit=consumer.outlet.credit.size,
                retention_s=self.settings.retention_s,
            )
        except BaseException:
            self._unlisten(consumer)
            raise

    async def catches_up(self, journal: Journal, offset: int) -> bool:
        """Whether the journal reaches `offset` soon: after a failover the worker sends lost text again."""
        for _ in range(CATCH_UP_TRIES):
            await asyncio.sleep(CATCH_UP_INTERVAL_S)
            snapshot = await journal.snapshot()
            if snapshot.head >= offset:
                return True
            if snapshot.status in TERMINAL:
                return False
        return False

    def detach(self, consumer: Consumer) -> None:
        """Let go of a consumer, if that was not done. Sync, so that it runs whatever was cancelled.

        TTLs cover a lost node.
        """
        consumer.end(Ending.DISCONNECTED)
        if not self._unlisten(consumer):
            return
        ending = consumer.ended.result()
        self.metrics.endings[ending.name.lower()] += 1
        # Also when superseded: the newer connection is given back what a last read of this one took.
        consumer.journal.post_detach(
            consumer.name, consumer.connection, consumer.ledger.confirmed, keep=consumer.keep
        )

    def drain(self) -> None:
        """Take no new readers, and send those that are here elsewhere, spread over time."""
        self.draining = True
        for consumer in self.consumers:
            wait = {"retry_ms": random.randint(*RECONNECT_MS)}
            consumer.end(Ending.DRAINED, consumer.outlet.form.private("reconnect", wait))

    async def drained(self) -> None:
        """Wait until the last consumer has gone."""
        while self._responses:
            self._emptied.clear()
            await self._emptied.wait()

    # --- bells

    def _listen(self, consumer: Consumer) -> None:
        journal = consumer.journal
        feed = self._responses.get(journal.id)
        if feed is None:
            feed = Feed(self.loop, self.metrics, self.topology.server_time, journal)
            self._responses[journal.id] = feed
            journal.wire.subscribe(journal.keys.bell, lambda message: self._rung(feed, message))
        feed.join(consumer)

    def _unlisten(self, consumer: Consumer) -> bool:
        """Whether it was here."""
        journal = consumer.journal
        feed = self._responses.get(journal.id)
        if feed is None or not feed.leave(consumer):
            return False
        if not feed.members:
            del self._responses[journal.id]
            journal.wire.unsubscribe(journal.keys.bell)
            self._emptied.set()
        return True

    def _rung(self, feed: Feed, message: bytes) -> None:
        if message.isdigit():
            feed.ring(int(message))
            return
        word, name, value = message.decode().split(" ")
        for consumer in tuple(feed.members):
            if consumer.name != name:
                continue
            if word == "ack":
                consumer.acknowledge(int(value))
            elif word == "attached" and value != consumer.connection:
                self.supersede(consumer)

    @staticmethod
    def supersede(consumer: Consumer) -> None:
        """A newer connection has the consumer's name: tell this one, and end it."""
        message = "a newer connection has taken this consumer over"
        data = {"code": "superseded", "message": message, "retryable": False}
        consumer.end(Ending.SUPERSEDED, consumer.outlet.form.private("error", data))

    def _recover(self, affects: Affects) -> None:
        for response_id, feed in tuple(self._responses.items()):
            if affects(keys_of(response_id).log):
                feed.recover()
