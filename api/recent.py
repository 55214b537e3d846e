"""The newest bytes of a response, and the same as frames: rendered once for all who stand at one offset."""

from collections.abc import Iterable

from api.outlet import Batch, render
from relay.events import decode
from relay.journal import Entry

# The newest bytes that are kept: four credits. Of what is older a slow member reads its own part.
KEPT_BYTES = 65_536
# Rendered batches, one for each offset at which members stand; past that they are made again.
MAX_BATCHES = 8


class Recent:
    """What lies from `start` to `end`. Offsets that are asked for are record boundaries in between."""

    __slots__ = ("_batches", "_data", "end", "entry_bytes", "epoch", "kept_bytes", "start")

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self.start = self.end = 0
        self.epoch = 0  # the one that wrote last; every byte is still true under it
        self.entry_bytes = 64.0  # moving average
        self._data = bytearray()
        self._batches: dict[int, Batch] = {}

    def begin_at(self, offset: int) -> None:
        """Empty, at another place."""
        self._data.clear()
        self._batches.clear()
        self.start = self.end = offset

    def take_entries(self, entries: Iterable[Entry]) -> bool:
        """Add what follows on the end; False at a hole, which ends the taking."""
        self._batches.clear()
        for entry in entries:
            size = len(entry.data)
            self.entry_bytes += (size - self.entry_bytes) / 8
            behind = self.end - entry.end + size  # bytes of it that are there: we begin where a member stood
            if behind < 0:
                return False
            if behind < size:
                self._data += entry.data[behind:] if behind else entry.data
                self.end = entry.end
            self.epoch = entry.epoch
        return True

    def take_bytes(self, data: bytes, epoch: int) -> None:
        """Add the whole records of what follows on the end."""
        self._batches.clear()
        self.epoch = epoch
        reached = decode(data, self.end)[1]
        self._data += data[: reached - self.end]
        self.end = reached

    def trim(self) -> None:
        """Let go of what is over the bound."""
        excess = len(self._data) - self.kept_bytes
        if excess > 0:
            del self._data[:excess]
            self.start += excess

    def slice(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`."""
        at = offset - self.start
        return bytes(self._data[at : at + size])

    def batch(self, offset: int, epoch: int) -> Batch:
        """All from `offset` as frames, the same for all who ask. Their ids have this epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._batches.clear()
        found = self._batches.get(offset)
        if found is None:
            found = render(decode(self.slice(offset, len(self._data)), offset)[0], self.epoch)
            if len(self._batches) >= MAX_BATCHES:
                self._batches.clear()
            self._batches[offset] = found
        return found


def following(entries: Iterable[Entry], end: int) -> tuple[bytes, bool]:
    """What entries add to a text that ends at `end`, and whether that is all: False where there is a hole."""
    parts = []
    is_whole = True
    for entry in entries:
        start = entry.end - len(entry.data)
        if start <= end < entry.end:
            parts.append(entry.data[end - start :] if start < end else entry.data)
            end = entry.end
        elif start > end:
            is_whole = False
        # Else it is there already: only its acknowledgement is owed.
    return b"".join(parts), is_whole
