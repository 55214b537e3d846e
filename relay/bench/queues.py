"""What the kernel holds of a TCP connection on this machine, from /proc/net/tcp (proc(5))."""

from pathlib import Path
from typing import NamedTuple

from relay.errors import ServerUnfit

_TABLE = Path("/proc/net/tcp")
# Of include/net/tcp_states.h: established, and those in which bytes may still be under way.
_WITH_BYTES = frozenset(("01", "04", "05", "08", "09", "0B"))


class Held(NamedTuple):
    """Bytes of one direction: written and not acknowledged, and received and not read."""

    by_sender: int
    by_receiver: int


def held(sender: int, receiver: int) -> Held:
    """Of the connection between two ports of 127.0.0.1, one way. Zeros when there is none."""
    try:
        lines = _TABLE.read_text().splitlines()[1:]
    except OSError as error:
        raise ServerUnfit("the benchmark reads socket queues from /proc/net/tcp and needs Linux") from error
    by_sender = by_receiver = 0
    ports = f"{sender:04X}", f"{receiver:04X}"
    for line in lines:
        _, local, remote, state, queues, *_ = line.split()
        ends = local.rpartition(":")[2], remote.rpartition(":")[2]
        unacknowledged, _, unread = queues.partition(":")
        if state in _WITH_BYTES and ends == ports:
            by_sender = int(unacknowledged, 16)
        elif state in _WITH_BYTES and ends == ports[::-1]:
            by_receiver = int(unread, 16)
    return Held(by_sender, by_receiver)
