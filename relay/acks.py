"""What clients with explicit acks have said: kept beside the response until the consumer is forgotten.

The bell tells the node that serves the consumer, if it hears it. Its connection to Redis may be away in that
moment, and the reader may hang up right after the ack; then the node's next look, or the next attach by
name, finds it here. So an ack that was answered is never lost.
"""

from relay.errors import WireProtocol
from relay.journal import Journal
from relay.link import Reply
from relay.scripts import ACKED, Script

ACK = Script("ack_consumer")


async def acknowledge(journal: Journal, consumer: str, offset: int) -> bool:
    """Keep it and ring the bell; False when the response is gone. Idempotent: the furthest counts."""
    keys = journal.keys
    args = (consumer, offset, ACKED + consumer, keys.bell)
    return bool(await ACK.run(journal.wire, (keys.meta,), args))


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
