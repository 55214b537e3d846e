"""Where a consumer's records leave: frames on the socket, within its credit, and what is confirmed."""

from api import sse
from api.ledger import Credit, Ledger
from api.metrics import Metrics
from api.protocol import ClientSocket
from relay.events import HEADER_MAX, MAX_PAYLOAD, TERMINAL, Placed, merge

# Unconfirmed frames of a reader of the journal. Live readers are bounded by entries.
BEHIND_FRAMES = 8
_LARGEST_RECORD = MAX_PAYLOAD + HEADER_MAX


class Outlet:
    """The writing half of a consumer. Credit counts bytes of the response, not of the frames."""

    __slots__ = ("_metrics", "credit", "epoch", "has_terminal", "ledger", "socket")

    def __init__(
        self, socket: ClientSocket, credit: Credit, metrics: Metrics, offset: int, epoch: int
    ) -> None:
        self.socket = socket
        self.credit = credit
        self.ledger = Ledger(offset)
        self.epoch = epoch
        self.has_terminal = False
        self._metrics = metrics

    @property
    def room(self) -> int:
        """How many bytes may be read from the log."""
        return self.credit.size - self.ledger.unconfirmed

    @property
    def room_behind(self) -> int:
        """How many from the journal. With nothing out, one record may exceed a small credit."""
        out = self.ledger.unconfirmed
        if not out:
            return max(self.credit.size, _LARGEST_RECORD)
        # Few frames on their way: what gathers meanwhile leaves as one, so a slow reader gets large frames,
        # and what frames cost over their text does not fill buffers that credit does not count.
        return self.credit.size - out if self.ledger.frames < BEHIND_FRAMES else 0

    def write(self, placed: list[Placed]) -> bool:
        """Write the records that the credit holds; False when some did not fit and must be read again.

        A terminal record needs no credit, and with nothing out the first record may exceed it.
        """
        ledger = self.ledger
        limit = ledger.confirmed + self.credit.size
        fitting = placed
        if placed and placed[-1].end > limit:
            fitting = []
            for item in placed:
                may_exceed = item.record.channel in TERMINAL or not (fitting or ledger.unconfirmed)
                if item.end > limit and not may_exceed:
                    break
                fitting.append(item)
        if fitting:
            self._send(merge(fitting) if len(fitting) > 1 else fitting)
        return len(fitting) == len(placed)

    def _send(self, merged: list[Placed]) -> None:
        frames = [sse.frame(item.record, item.end, self.epoch) for item in merged]
        self.socket.write(frames[0] if len(frames) == 1 else b"".join(frames))
        # The chunk's own end comes after its data: these marks are late by two bytes, never early.
        at = self.socket.written - sum(map(len, frames))
        for item, data in zip(merged, frames, strict=True):
            at += len(data)
            self.ledger.wrote(at, item.end)
        self.has_terminal = merged[-1].record.channel in TERMINAL
        self._metrics.sent(merged, frames)

    def acknowledged(self) -> int:
        """The offset that the client's kernel has, as of now."""
        if not self.ledger.frames:
            return self.ledger.confirmed
        return self.ledger.acknowledged(self.socket.written - self.socket.outstanding())
