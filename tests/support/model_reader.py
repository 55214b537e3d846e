"""A reader as simple as it can be and still be right: its whole rule, without I/O.

An entry of the log holds the bytes [start, end) of the journal. With `sent` bytes taken so far:

    end <= sent     it is known already: skip it
    start > sent    the log was trimmed in between: a hole, to be read from the journal first
    otherwise       take what is new of it
"""

from collections import defaultdict
from typing import NamedTuple

from relay.events import TEXT, Channel, Record, decode

Texts = dict[tuple[Channel, int], bytes]


class Hole(NamedTuple):
    """Bytes that a reader lacks before it can take an entry."""

    start: int
    end: int


def texts_of(records: list[Record]) -> Texts:
    """What each channel says, tool calls apart; atomic records one after the other."""
    texts: dict[tuple[Channel, int], bytes] = defaultdict(bytes)
    for channel, payload in records:
        mark = 1 if channel is Channel.TOOL_ARGUMENTS else 0
        texts[channel, payload[0] if mark else 0] += payload[mark:] if channel in TEXT else payload + b"\n"
    return dict(texts)


class ModelReader:
    """What a client has: `received`, the journal's bytes from 0, and what each channel says."""

    def __init__(self) -> None:
        self.received = b""
        self.records: list[Record] = []
        self._ends: list[int] = []

    @property
    def sent(self) -> int:
        """The reader's position: a record boundary."""
        return len(self.received)

    @property
    def texts(self) -> Texts:
        """What each channel says so far."""
        return texts_of(self.records)

    def take_entry(self, end: int, data: bytes) -> Hole | None:
        """Take what is new in an entry; the hole before it, when there is one, and nothing is taken."""
        start = end - len(data)
        if end <= self.sent:
            return None
        if start > self.sent:
            return Hole(self.sent, start)
        taken = self.take(data[self.sent - start :])
        assert taken == end, "an entry holds whole records"
        return None

    def take(self, data: bytes) -> int:
        """Take the whole records at the start of `data`, the bytes from `sent` on. The new position."""
        placed, reached = decode(data, self.sent)
        self.received += data[: reached - self.sent]
        self.records += [item.record for item in placed]
        self._ends += [item.end for item in placed]
        return reached

    def go_back(self, offset: int) -> None:
        """Forget what is after `offset`, a record boundary at or before the position."""
        assert offset in {0, *self._ends}, f"{offset} is inside a record"
        kept = sum(end <= offset for end in self._ends)
        self.received, self.records, self._ends = (
            self.received[:offset],
            self.records[:kept],
            self._ends[:kept],
        )
