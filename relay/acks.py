"""What clients with explicit acks have said: kept beside the response until the consumer is forgotten.

The bell tells the node that serves the consumer, if it hears it. Its connection to Redis may be away in that
moment, and the reader may hang up right after the ack; then the node's next look, or the next attach by
name, finds it here. So an ack that was answered is never lost.
"""

import time
from collections import OrderedDict
from typing import NamedTuple

from relay.cluster import Affects
from relay.errors import WireProtocol
from relay.journal import Journal
from relay.link import Reply
from relay.scripts import ACK, ACKED
from relay.topology import Topology

KEPT_S = 30.0  # longer than a failover takes
KEPT_MOST = 8192  # of one node; the oldest are forgotten first, whose readers have probably said more since


class _Said(NamedTuple):
    """An ack that was answered: under which epoch, and when (monotonic seconds)."""

    journal: Journal
    offset: int
    epoch: int
    at: float


class Acks:
    """Takes acks, and says the last ones again when Redis may have lost them.

    A client says each once: with a window of acks that a failover forgot it would wait for ever for what
    fits in no more, and the relay for its ack.
    """

    def __init__(self, topology: Topology) -> None:
        self._said: OrderedDict[tuple[str, str], _Said] = OrderedDict()
        topology.on_change(self._say_again)

    async def acknowledge(self, journal: Journal, consumer: str, offset: int) -> bool:
        """Keep it and ring the bell; False when the response is gone. Idempotent: the furthest counts."""
        epoch = await ACK.run(journal.wire, (journal.keys.meta,), _words(journal, consumer, offset))
        if not epoch:
            return False
        key = journal.id, consumer
        self._said[key] = _Said(journal, offset, epoch, time.monotonic())
        self._said.move_to_end(key)
        self._forget()
        return True

    def _say_again(self, affects: Affects) -> None:
        """Only under the same epoch: what another worker has written since, nobody has acknowledged.

        A reader that went back by an id in that half minute is taken at its earlier word.
        """
        self._forget()
        for (_, consumer), (journal, offset, epoch, _) in self._said.items():
            if affects(journal.keys.meta):
                words = _words(journal, consumer, offset, epoch)
                journal.wire.post("EVALSHA", ACK.sha, 1, journal.keys.meta, *words)

    def _forget(self) -> None:
        """What is old goes with the next ack, not only when Redis breaks: it holds on to its response."""
        oldest = time.monotonic() - KEPT_S
        while self._said and (len(self._said) > KEPT_MOST or next(iter(self._said.values())).at < oldest):
            self._said.popitem(last=False)


def _words(journal: Journal, consumer: str, offset: int, epoch: int | str = "") -> tuple[str | int, ...]:
    return consumer, offset, ACKED + consumer, journal.keys.bell, epoch


def send_acked(journal: Journal, consumer: str) -> Reply:
    """Ask for the furthest ack; read the reply with `read_acked`. Raises Unavailable."""
    return journal.wire.send("HGET", journal.keys.meta, ACKED + consumer)


def read_acked(reply: bytes | None) -> int:
    """The offset; 0 without any ack."""
    if reply is None:
        return 0
    offset, found, _ = reply.partition(b"-")
    if not found:
        raise WireProtocol(f"not an ack: {reply[:40]!r}")
    return int(offset)
