"""What was sent to a consumer and is not confirmed: positions against bytes of its socket. Pure.

A mark says that the event which ends at an offset ends at a count of socket bytes; a pending entry is
one that was read from the log and is acknowledged when its end is confirmed.
"""

from collections import deque
from typing import NamedTuple


class Credit(NamedTuple):
    """How much may be unconfirmed. `explicit`: confirmed by the ack call, not by the client's kernel."""

    size: int
    entries: int
    explicit: bool


class Ledger:
    """The unconfirmed tail of one consumer. Bounded by its credit, in bytes and in entries."""

    __slots__ = ("_marks", "_pending", "confirmed", "sent")

    def __init__(self, offset: int) -> None:
        self.sent = offset  # up to here frames were written
        self.confirmed = offset  # up to here the client has it
        self._marks: deque[tuple[int, int]] = deque()
        self._pending: deque[tuple[int, bytes]] = deque()

    @property
    def unconfirmed(self) -> int:
        """Bytes of the response on their way."""
        return self.sent - self.confirmed

    @property
    def pending(self) -> int:
        """Entries read from the log and not acknowledged."""
        return len(self._pending)

    @property
    def frames(self) -> int:
        """Events written whose end the socket has not acknowledged."""
        return len(self._marks)

    def read(self, end: int, entry_id: bytes) -> None:
        """An entry that ends at offset `end` was read from the log."""
        self._pending.append((end, entry_id))

    def wrote(self, socket_bytes: int, end: int) -> None:
        """The event that ends at offset `end` ends at `socket_bytes` of the connection's output."""
        self._marks.append((socket_bytes, end))
        self.sent = end

    def acknowledged(self, socket_bytes: int) -> int:
        """The offset that the client's kernel has, when it has acknowledged so many bytes."""
        marks, offset = self._marks, self.confirmed
        while marks and marks[0][0] <= socket_bytes:
            offset = max(offset, marks.popleft()[1])
        return offset

    def forget(self) -> None:
        """No entry is pending any more: the group was put back to what is confirmed."""
        self._pending.clear()

    def confirm(self, offset: int) -> list[bytes]:
        """The client has it up to `offset`; returns the entries that are acknowledged by that."""
        self.confirmed = offset
        ids = []
        while self._pending and self._pending[0][0] <= offset:
            ids.append(self._pending.popleft()[1])
        return ids
