"""Where a reader is: a byte offset into the response, the same number everywhere.

The Redis stream entry that ends at byte N of the journal has the ID `N-<epoch>`, and so has the SSE
event that ends there. Lag is a subtraction of two offsets.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from relay.errors import Malformed

# Both parts of a Redis stream ID are unsigned 64-bit; ours stay far below, and 15 digits keep
# JavaScript clients exact (2**53).
_POSITION = re.compile(r"(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,8})")


class Position(NamedTuple):
    """A byte offset, and the epoch of the writer under which it was true."""

    offset: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.offset}-{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read `N-<epoch>`. Raises Malformed for anything else, spaces and signs included."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise Malformed(f"not a position: {text[:40]!r}; expected OFFSET-EPOCH, as in an event id")
        return cls(int(match[1]), int(match[2]))


START = Position(0, 0)


def valid_offset(position: Position, starts: Sequence[tuple[int, int]]) -> int:
    """The part of `position` that is still true: its offset, or where its epoch was overruled.

    `starts` are the epochs and the offsets from which they wrote, in order. A position past the start of a
    later epoch lies in text that a failover lost: the reader must go back to that start. An epoch that is
    not among them was lost itself, with its start: nothing is certain but the beginning.
    """
    if all(epoch != position.epoch for epoch, _ in starts):
        return 0
    return min([position.offset, *(start for epoch, start in starts if epoch > position.epoch)])


class Epochs(NamedTuple):
    """The epoch that writes now, and each one with the offset from which it wrote, in order."""

    newest: int
    starts: list[tuple[int, int]]

    @classmethod
    def parse(cls, newest: str, starts: str) -> "Epochs":
        """Read them as the meta has them: `EPOCH:OFFSET,EPOCH:OFFSET`."""
        pairs = [pair.partition(":") for pair in starts.split(",") if pair]
        return cls(int(newest), [(int(epoch), int(start)) for epoch, _, start in pairs])

    def valid_offset(self, sent: int, epoch: int) -> int:
        """Up to where the bytes are still true that a reader was sent, up to `sent` and under `epoch`."""
        if epoch == self.newest or not sent:
            return sent
        return valid_offset(Position(sent, epoch), self.starts)
